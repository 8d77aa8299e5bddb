"""A classifier that is frozen for the first epochs, and LAMB beside the layer-wise methods."""

import json
from pathlib import Path

import pytest
import torch
from machine import after_steps, launch, record
from safetensors.torch import load_file

from clars.lab.training import script

FROZEN = {"base_rate": 0.5, "base_batch": 256, "frozen_head_epochs": 1}


def train(*words):
    return script.main([str(word) for word in words])


@pytest.fixture
def heads(monkeypatch):
    """The classifier's weights, and whether it has momentum, after each step."""
    seen = []

    def look(training):
        weight = training.plain.get_classifier().weight
        seen.append((weight.detach().clone(), bool(training.inner.state.get(weight))))

    after_steps(monkeypatch, look)
    return seen


@pytest.mark.parametrize("micro_batch", [256, 64])
@pytest.mark.parametrize("optimizer", ["clars", "lars", "sgd"])
def test_a_frozen_head_does_not_move_at_all_and_then_does(recipe, heads, optimizer, micro_batch):
    """Five steps an epoch; with weight decay and momentum, of which nothing is left over from the frozen steps."""
    path = recipe(optimizer={"name": optimizer, "weight_decay": 0.1}, schedule=FROZEN)
    assert train(path, "--micro-batch", micro_batch) == 0
    first = heads[0][0]
    assert all(torch.equal(weight, first) and not momentum for weight, momentum in heads[:5])
    assert all(momentum and not torch.equal(weight, first) for weight, momentum in heads[5:])


def test_the_steps_of_a_frozen_head_tell_nothing_of_it(recipe):
    assert train(recipe(optimizer={"name": "clars"}, schedule=FROZEN, layer_statistics=5)) == 0
    lines = [json.loads(line) for line in Path("runs/tiny/small/seed0/layers.jsonl").read_text().splitlines()]
    assert {line["step"] for line in lines if line["layer"] == "fc"} == {10}
    assert {line["step"] for line in lines if line["layer"] == "conv1"} == {5, 10}


@pytest.mark.full
@pytest.mark.parametrize("machine", ["cpu2", "fsdp2"])
def test_under_two_processes_too(recipe, machine):
    schedule = FROZEN | {"frozen_head_epochs": 0.999}  # after five steps of five, nothing of the head was trained
    model = {"name": "test_convnext2"}
    data = {"name": "digits", "image_size": 32, "channels": 1}
    path = recipe(model=model, data=data, optimizer={"name": "clars"}, schedule=schedule, epochs=1)
    assert train(path, "--out", "one") == 0
    launch(machine, path, "--out", "two")
    assert record("two")["world_size"] == 2
    one, two = (load_file(f"{out}/small/seed0/model.safetensors") for out in ("one", "two"))
    assert torch.equal(one["head.fc.weight"], two["head.fc.weight"])
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=2e-4, atol=2e-5)


def test_a_model_without_a_classifier_is_named(recipe, capsys, monkeypatch):
    from clars.lab.models.small_resnet import SmallResNet

    monkeypatch.setattr(SmallResNet, "get_classifier", lambda self: torch.nn.Identity())
    assert train(recipe(schedule=FROZEN)) == 2
    assert "schedule.frozen_head_epochs = 1: resnet8 has no classifier" in capsys.readouterr().err


def test_lamb_trains(recipe):
    path = recipe(optimizer={"name": "lamb"}, schedule={"base_rate": 0.02, "base_batch": 64}, batch_size=64)
    assert train(path) == 0
    assert record("runs/tiny")["optimizer"]["name"] == "lamb"
    assert record("runs/tiny")["final"]["top1"] > 60


@pytest.mark.full
@pytest.mark.parametrize("name", ["fsdp2", pytest.param("zero1", marks=pytest.mark.deepspeed)])
def test_lamb_is_the_same_where_it_is_cut_and_a_frozen_head_is_refused_there(recipe, name):
    if name == "zero1":
        path = recipe(schedule=FROZEN, optimizer={"name": "lars"})
        assert "frozen_head_epochs cannot be had under zero1" in launch(name, path, code=1)
    path = recipe(
        model={"name": "test_convnext2"},  # without batch statistics
        data={"name": "digits", "image_size": 32, "channels": 1},
        optimizer={"name": "lamb"},
        schedule={"base_rate": 0.02, "base_batch": 64},
        epochs=1,
    )
    launch(name, path, "--out", "cut")
    assert train(path, "--out", "whole") == 0
    assert record("cut")["strategy"] == name
    assert record("cut")["final"]["loss"] == pytest.approx(record("whole")["final"]["loss"], rel=1e-3)
