"""The exponential moving average of the weights."""

import pytest
import torch
from machine import interrupt, launch, lines, record, same, weights
from torch import nn

from clars.errors import UserError
from clars.lab.recipes.load import load
from clars.lab.training import script
from clars.lab.training.average import Average


def train(*words):
    return script.main([str(word) for word in words])


@pytest.mark.parametrize("warmup", [False, True])
def test_the_average_by_its_definition(recipe, warmup):
    """Of weights and of buffers: the first step's as they are, then a move by 1 - decay."""
    resolved = load(str(recipe(ema={"decay": 0.75, "warmup": warmup})))
    model = nn.BatchNorm1d(3).double()
    average, expected = Average(resolved, model), None
    for step in range(1, 6):
        model(torch.randn(8, 3, dtype=torch.float64))
        nn.init.normal_(model.weight)
        average.update(model, step)
        decay = min(0.75, 1 - step ** -(2 / 3)) if warmup else 0.75
        now = {name: value.clone() for name, value in model.state_dict().items()}
        if expected is None:
            expected = now
        expected = {name: decay * expected[name] + (1 - decay) * now[name] for name in ("weight", "running_mean")}
        for name, value in expected.items():
            torch.testing.assert_close(average.state()[name], value)
        assert average.state()["num_batches_tracked"] == step


def test_it_is_what_is_evaluated_and_saved(recipe):
    path = recipe(ema={"decay": 0.9}, epochs=3)
    assert train(path, "--out", "ema") == 0
    assert train(path, "ema=null", "--out", "last") == 0
    assert (record("ema")["weights"], record("last")["weights"]) == ("ema", "last")
    assert not same("ema", "last")
    rows = [[row["train_loss"] for row in lines(out)] for out in ("ema", "last")]
    assert rows[0] == rows[1], "the average changes no step of the training"
    assert weights("ema")["bn1.num_batches_tracked"] == weights("last")["bn1.num_batches_tracked"]


def test_it_goes_on_bit_for_bit(recipe, monkeypatch):
    path = recipe(ema={"decay": 0.9}, evaluation={"batch_norm": "recalibrated"})
    assert train(path, "--out", "whole") == 0
    interrupt(monkeypatch, 7)
    assert train(path, "--out", "parts", "--checkpoint-every", 3) == 130
    monkeypatch.undo()
    monkeypatch.chdir(path.parents[3])
    assert train(path, "--out", "parts") == 0
    assert same("whole", "parts")
    assert record("whole")["final"] == record("parts")["final"]


@pytest.mark.full
def test_two_processes_average_the_same(recipe):
    model = {"name": "test_convnext2"}
    data = {"name": "digits", "image_size": 32, "channels": 1}
    path = recipe(ema={"decay": 0.9}, model=model, data=data, epochs=1)
    launch("cpu", path, "--out", "one")
    launch("cpu2", path, "--out", "two")
    one, two = weights("one"), weights("two")
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("strategy", ["fsdp2", "zero1", "zero2", "zero3"])
def test_cut_or_copied_weights_are_refused_by_name(recipe, strategy):
    average = Average(load(str(recipe(ema={"decay": 0.9}))), nn.Linear(1, 1))
    with pytest.raises(UserError, match=f"ema cannot be had under {strategy}"):
        average.begin(strategy, torch.device("cpu"), {})


@pytest.mark.full
def test_a_sharded_launch_is_refused(recipe):
    assert "ema cannot be had under fsdp2" in launch("fsdp2", recipe(ema={"decay": 0.9}), code=1)
