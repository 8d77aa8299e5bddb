"""`--mixed-precision`: what it computes in, what its record says, and with what else it cannot be given."""

import shlex
from pathlib import Path

import pytest
import torch
from machine import distance, interrupt, numbers, record, same
from torch import nn

from clars.errors import UserError
from clars.lab import cli
from clars.lab.recipes.load import load
from clars.lab.runs import consistency
from clars.lab.runs.record import Record
from clars.lab.training import run, script


def train(*words):
    return script.main([str(word) for word in words])


def test_the_option_is_what_accelerate_launch_would_say(recipe, monkeypatch, fresh):
    """The network computes in bfloat16, its weights stay float32, and either way of asking gives the same run."""
    types = set()
    original = nn.Conv2d._conv_forward

    def noting(self, x, weight, bias):
        made = original(self, x, weight, bias)
        types.update([(weight.dtype, made.dtype)] if self.training else [])
        return made

    monkeypatch.setattr(nn.Conv2d, "_conv_forward", noting)
    path = recipe(epochs=1)
    assert train(path, "--out", "full") == 0
    assert types == {(torch.float32, torch.float32)}
    types.clear()
    fresh()
    assert train(path, "--mixed-precision", "bf16", "--out", "option") == 0
    assert types == {(torch.float32, torch.bfloat16)}
    fresh()
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert train(path, "--mixed-precision", "bf16", "--out", "both") == 0
    fresh()
    assert train(path, "--out", "launch") == 0
    assert same("option", "launch") and same("option", "both") and numbers("option") == numbers("launch")
    assert 1e-5 < distance("option", "full") < 0.5


def test_the_record_names_it_and_its_command_repeats_it(recipe, launches, fresh):
    assert train(recipe(epochs=1), "--mixed-precision", "bf16", "--out", "first") == 0
    made = record("first")
    assert made["mixed_precision"] == "bf16"
    assert made["command"].endswith("clars run tiny/small@v1 --seed 0 --launch cpu --mixed-precision bf16")
    launches(lambda arguments, config: script.main(arguments))
    words = shlex.split(made["command"])
    with pytest.raises(SystemExit) as end:
        cli.main(words[words.index("clars") + 1 :])
    assert end.value.code == 0 and same("first", "runs/tiny")
    fresh()
    assert train(recipe(epochs=1), "--out", "plain") == 0
    assert record("plain")["mixed_precision"] == "no" and "precision" not in record("plain")["command"]


@pytest.mark.parametrize(
    "launched, words, message",
    [
        ("bf16", ["no"], "--mixed-precision no: `accelerate launch`, or its configuration, says mixed_precision bf16"),
        ("fp16", ["bf16"], "--mixed-precision bf16: `accelerate launch`, or its configuration, says"),
        ("no", ["fp16"], "fp16 needs a GPU, and this run is on the processor. Choose --mixed-precision bf16"),
        ("fp16", [], "fp16 needs a GPU"),
    ],
)
def test_what_cannot_be_is_one_message(recipe, monkeypatch, capsys, fresh, launched, words, message):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert train(recipe(), *(["--mixed-precision", *words] if words else [])) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_a_run_goes_on_in_the_precision_it_began_in(recipe, monkeypatch, capsys, fresh):
    """Its record names one."""
    path = recipe()
    assert train(path, "--mixed-precision", "bf16", "--out", "whole") == 0
    with monkeypatch.context() as stopping:
        interrupt(stopping, 7)
        assert train(path, "--mixed-precision", "bf16", "--out", "parts") == 130
    fresh()
    assert train(path, "--out", "parts") == 2
    assert "in mixed precision bf16, not no. Go on with --mixed-precision bf16" in capsys.readouterr().err
    fresh()
    assert train(path, "--mixed-precision", "bf16", "--out", "parts") == 0
    assert same("whole", "parts") and numbers("whole") == numbers("parts")


def test_a_state_of_an_older_version_goes_on_in_any(recipe):
    run.Progress(mixed_precision=None).require_precision("bf16", None)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_on_a_gpu(recipe, fresh, precision):
    assert train(recipe(), "--mixed-precision", precision, "--out", precision) == 0
    made = record(precision)
    assert made["mixed_precision"] == precision and made["final"]["top1"] > 20
    assert f"--launch gpu --mixed-precision {precision}" in made["command"]


def test_a_recipe_states_it(recipe, fresh, capsys):
    """As the option does; other precisions are refused, and records must be of it."""
    assert train(recipe(epochs=1), "--mixed-precision", "bf16", "--out", "option") == 0
    fresh()
    path = recipe(epochs=1, precision="bf16")
    assert train(path, "--out", "stated") == 0
    assert same("option", "stated") and record("stated")["mixed_precision"] == "bf16"
    fresh()
    assert train(path, "precision=fp32", "--out", "full") == 0
    assert record("full")["mixed_precision"] == "no"
    capsys.readouterr()
    assert train(path, "--mixed-precision", "no", "--out", "other") == 2
    assert "--mixed-precision no: tiny/small@v1 has precision bf16. Leave one of them out" in capsys.readouterr().err


def test_one_launch_has_one_precision(recipe, fresh, capsys):
    stated, other = recipe(precision="bf16"), recipe("other")
    assert train(stated, other) == 2
    told = capsys.readouterr().err
    assert "recipes ask for several: tiny/small@v1 in bf16, tiny/other@v1 in no stated one. Run them apart." in told


def test_a_record_of_another_precision_than_its_recipe_s(recipe, fresh):
    path = recipe(epochs=1, precision="bf16")
    assert train(path, "--out", "stated") == 0
    resolved, made = load(str(path)), Record.read(Path("stated/small/seed0/run.json"))
    consistency.agree(made, resolved, Path("run.json"))
    with pytest.raises(UserError, match="mixed_precision is no, the recipe has precision bf16"):
        consistency.agree(made.model_copy(update={"mixed_precision": "no"}), resolved, Path("run.json"))
