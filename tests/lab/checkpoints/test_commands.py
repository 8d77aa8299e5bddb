"""What the commands print of files that somebody else wrote."""

import json

import pytest
from tiny import change
from typer.testing import CliRunner

from clars.lab.checkpoints import card, form, manifest
from clars.lab.checkpoints.measure import splits
from clars.lab.commands.checkpoints import app
from clars.lab.recipes.load import load
from clars.lab.recipes.schema import Recipe
from clars.lab.runs.record import Record

HOSTILE = "\x1b]0;owned\x07\x9b31m\r\u202e"
SHOWN = r"\x1b]0;owned\x07\x9b31m\r\u202e"


def test_the_list_gives_the_terminal_no_orders(published):
    """Escape codes in the manifest reached the terminal as they were."""
    path = manifest.root() / manifest.FILE
    known = json.loads(path.read_text())["checkpoints"]
    entry = known["small"]
    change(path, checkpoints={"small": entry | {"architecture": HOSTILE, "top1": entry["top1"] | {"data": HOSTILE}}})
    done = CliRunner().invoke(app, ["list"])
    assert done.exit_code == 0 and done.output.count(SHOWN) == 2
    assert done.output.replace("\n", "").isprintable()


@pytest.mark.parametrize("key", ["description", "device", "version"])
def test_a_card_gives_the_terminal_no_orders(published, key):
    """Text of recipes and records went into the card as it was; a card is read in terminals too."""
    entry, record, recipe = manifest.find("small"), Record.read(published / form.RECORD), load("tiny/small").recipe
    if key == "description":
        recipe = Recipe.model_validate(recipe.model_dump() | {key: HOSTILE})
    elif key == "device":
        record = record.model_copy(update={key: HOSTILE})
    else:
        entry = entry.model_copy(update={key: HOSTILE})
    written = card.write("small", entry, record, recipe, splits(recipe), None)
    assert written.replace("\n", "").isprintable() and "owned" in written
