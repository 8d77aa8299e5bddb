"""One epoch of training from small copies in the schemas of public data sets, without network."""

import json
from pathlib import Path

import pytest
import yaml

from clars.recipes.schema import Data
from clars.training import script


def train(folder: Path, data: Data, **changes) -> tuple[int, dict]:
    """Train a small network on `data`; return the exit code and the record."""
    settings = {
        "description": "one epoch",
        "model": {"name": "resnet8", "arguments": {"width": 4}},
        "data": data.model_dump(exclude_defaults=True),
        "optimizer": {"name": "clars"},
        "schedule": {"base_rate": 1.0, "base_batch": 8},
        "batch_size": 8,
        "epochs": 1,
    } | changes
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(settings))
    out = folder / "runs"
    code = script.main([str(path), "--out", str(out), "--overwrite"])
    return code, json.loads((out / "small" / "seed0" / "run.json").read_text())


@pytest.mark.parametrize("kind, steps", [("mnist", 5), ("cifar", 5), ("imagenet", 3), ("photographs", 1)])
def test_an_epoch_in_the_schema(request, tmp_path, kind, steps):
    code, record = train(tmp_path, request.getfixturevalue(kind))
    assert (code, record["status"], record["steps"]) == (0, "finished", steps)


def test_workers_and_what_they_prepare_change_no_number(imagenet, tmp_path):
    _, alone = train(tmp_path, imagenet)
    _, helped = train(tmp_path, imagenet.model_copy(update={"workers": 2, "prefetch": 1}))
    assert alone["final"] == helped["final"]
