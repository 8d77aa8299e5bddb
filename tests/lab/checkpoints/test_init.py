"""Beginning from a checkpoint: what is taken over, what is new, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import write_recipe

from clars.errors import CheckpointError
from clars.lab import data, models
from clars.lab.checkpoints import form, manifest
from clars.lab.recipes.load import load
from clars.lab.runs.record import Record
from clars.lab.training import init, script


def begin(**changes):
    resolved = load(str(write_recipe(Path.cwd(), "further", init="small", **changes)))
    recipe = resolved.recipe
    splits = data.load(recipe.data, evaluation="test")
    model = models.create(recipe.model, splits.num_classes, recipe.data.channels, recipe.data.image_size)
    return init.begin(resolved, model, splits), model.state_dict()


def test_all_weights_where_the_classes_are_the_same(published):
    done, state = begin()
    stored = load_file(published / form.WEIGHTS)
    assert done.head == "kept" and done.checkpoint == "small"
    assert done.sha256 == manifest.find("small").files[form.WEIGHTS].sha256
    assert state.keys() == stored.keys() and all(torch.equal(state[name], stored[name]) for name in stored)


@pytest.mark.parametrize("names", [("a", "b", "c"), tuple("abcdefghij")], ids=["other number", "other names"])
def test_a_new_head_where_they_are_not(published, monkeypatch, names):
    resolved = load(str(write_recipe(Path.cwd(), "further", init="small")))
    splits = data.Splits(None, None, len(names), names)
    model = models.create(resolved.recipe.model, len(names), 1, 8)
    fresh = {name: value.clone() for name, value in model.state_dict().items()}
    assert init.begin(resolved, model, splits).head == "new"
    stored, state = load_file(published / form.WEIGHTS), model.state_dict()
    for name in state:
        assert torch.equal(state[name], (fresh if name.startswith("fc.") else stored)[name]), name


@pytest.mark.parametrize("changes, message", [
    ({"model": {"name": "resnet20"}}, "is a resnet8, the recipe trains resnet20. Set model.name=resnet8"),
    ({"model": {"name": "resnet8", "arguments": {"width": 8}}}, r"conv1.weight is \(4, 1, 3, 3\) there"),
    ({"data": {"name": "digits", "image_size": 8, "channels": 3}}, r"and \(4, 3, 3, 3\) here"),
])  # fmt: skip
def test_other_networks_are_refused(published, changes, message):
    with pytest.raises(CheckpointError, match=message):
        begin(**changes)


def test_a_run_that_continues_says_so(published, capsys):
    path = write_recipe(Path.cwd())
    assert script.main([str(path), "init=small", "schedule.base_rate=0.001", "--out", "further"]) == 0
    record, before = Record.read(Path("further/small/seed0/run.json")), Record.read(published / form.RECORD)
    assert record.init.head == "kept" and record.overrides[0] == "init=small"
    assert record.final.top1 >= before.final.top1 - 5, "it begins where the other ended"
    assert "small/seed0: begins with small, its head kept" in capsys.readouterr().err
    assert script.main([str(path), "init=smal", "--out", "further2"]) == 2
    assert "Did you mean 'small'?" in capsys.readouterr().err
    assert not Path("further2").exists() and json.loads(Path("further/small/seed0/run.json").read_text())["init"]
