"""Versions with published results are as they were when the results came about."""

import json
from pathlib import Path

import pytest

from clars.lab.tables import frozen

RECIPES = Path(__file__).parents[3] / "recipes"
PUBLISHED = [path for path in sorted(RECIPES.glob("*/results/v*")) if any(path.glob("**/seed*.json"))]


def version_of(results):
    return results.parents[1] / results.name


@pytest.mark.parametrize("results", PUBLISHED, ids=lambda path: f"{path.parents[1].name}-{path.name}")
def test_no_frozen_file_changed_or_went(results):
    assert (results / frozen.FILE).exists()
    assert frozen.changed(version_of(results)) == []


@pytest.mark.parametrize("results", PUBLISHED, ids=lambda path: f"{path.parents[1].name}-{path.name}")
def test_records_are_of_the_frozen_files(results):
    stated = json.loads((results / frozen.FILE).read_text())
    records = [path for path in results.glob("*/**/seed*.json") if path.stem.removeprefix("seed").isdigit()]
    for path in records:
        record = json.loads(path.read_text())["record"]
        folder, _, name = record["recipe"].partition("/")
        assert (folder, record["version"]) == (results.parents[1].name, results.name), path
        assert record["recipe_sha256"] == stated[f"{name}.yaml"], path
