"""What is published in this repository."""

import re
from pathlib import Path

import pytest

from clars.lab import data
from clars.lab.checkpoints import card, form, manifest
from clars.lab.checkpoints.measure import splits
from clars.lab.checkpoints.verify import verify

ROOT = Path(__file__).parents[3]
ENTRIES = manifest.load(ROOT / "checkpoints").checkpoints


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv(manifest.VARIABLE, raising=False)


@pytest.mark.parametrize("name", ENTRIES)
def test_each_is_what_it_says(name):
    """Its files, its accuracy, and a card that nobody edited."""
    entry, found = ENTRIES[name], form.read(ROOT / "checkpoints" / name)
    here, text = data.reachable(found.recipe.data)
    if not here:
        pytest.skip(text)
    assert len(list(verify(name))) == 4
    assert entry.dirty is False and entry.top1.value == found.record.final.top1
    assert entry.recipe_sha256 == found.record.recipe_sha256
    repo = re.fullmatch(r"hf://(.+)@\w+", entry.address)[1] if entry.address else None
    written = card.write(name, entry, found.record, found.recipe, splits(found.recipe), repo)
    assert (found.path / form.CARD).read_text() == written


def test_the_list_shows_them():
    page = (ROOT / "checkpoints" / "README.md").read_text()
    for name, entry in ENTRIES.items():
        top1 = entry.top1
        assert f"{top1.value:.2f} | {top1.mean:.2f} ± {top1.half_width:.2f} |" in re.search(rf".*\[{name}\].*", page)[0]
