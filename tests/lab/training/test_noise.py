"""The noise scale of a run: its lines, what measuring changes, going on, and every strategy."""

from pathlib import Path

import mixing
import pytest
from machine import distance, disturbed, interrupt, launch, lines, numbers, record, same

from clars.lab import digests
from clars.lab.training import script

PLAIN = {"model": {"name": "fcn5", "arguments": {"width": 16}}}


def train(*words):
    return script.main([str(word) for word in words])


def noise(out):
    return lines(out, "noise.jsonl")


def close(one, other, rel=1e-3):
    """Whether the lines of two runs are the same but for rounding."""
    a, b = noise(one), noise(other)
    assert [line["step"] for line in a] == [line["step"] for line in b]
    for first, second in zip(a, b):
        assert first["noise_scale"] == pytest.approx(second["noise_scale"], rel=rel)
        assert first["layers"] == pytest.approx(second["layers"], rel=rel)
    return True


def test_beside_clars_the_norms_are_its_own(recipe):
    """The weights stay what they were, bit for bit; at the first step, before any averaging, so are the numbers."""
    path = recipe(layer_statistics=1)
    assert train(path, "--out", "plain") == 0
    assert train(path, "--out", "measured", "--noise-scale", 1) == 0
    assert same("plain", "measured") and numbers("plain") == numbers("measured")
    first = {line["layer"]: line["noise_scale"] for line in lines("measured", "layers.jsonl") if line["step"] == 1}
    assert noise("measured")[0]["layers"] == pytest.approx(first, rel=1e-5)
    assert [line["step"] for line in noise("measured")] == list(range(1, 11))


@pytest.mark.parametrize("optimizer", ["sgd", "lars"])
def test_beside_others_measuring_changes_no_more_than_rounding(recipe, optimizer):
    """Nothing of the optimizer is asked for, so the gradients at which the lines are taken are all but the same."""
    path = recipe(**PLAIN, optimizer={"name": optimizer}, schedule={"base_rate": 0.01, "base_batch": 256}, epochs=1)
    assert train(path, "--out", "plain") == 0
    assert train(path, "--out", "measured", "--noise-scale", 2) == 0
    assert distance("plain", "measured") < 1e-5
    assert [line["step"] for line in noise("measured")] == [2, 4]
    assert list(noise("measured")[0]["layers"])[-1] == "fc"
    assert all(line["noise_scale"] > 0 for line in noise("measured"))
    assert train(path, "--out", "cut", "--noise-scale", 2, "--micro-batch", 64) == 0
    assert close("cut", "measured")


def test_the_record_knows_the_lines(recipe):
    path = recipe(epochs=1)
    assert train(path, "--out", "a", "--noise-scale", 0) == 0
    assert train(path, "--out", "b") == 0
    assert record("a")["digests"]["noise"] == digests.of_file(Path("a/small/seed0/noise.jsonl"))
    assert " --noise-scale 1 " in record("a")["command"]  # 5 steps, so each
    assert "noise" not in record("b")["digests"] and "--noise-scale" not in record("b")["command"]
    assert not Path("b/small/seed0/noise.jsonl").exists()
    assert train(path, "--out", "a", "--overwrite") == 0
    assert not Path("a/small/seed0/noise.jsonl").exists()


@pytest.mark.parametrize("optimizer, micro_batch", [("sgd", 256), ("clars", 64)])
def test_a_resumed_run_writes_the_same_lines(recipe, monkeypatch, optimizer, micro_batch):
    path = recipe(optimizer={"name": optimizer}, schedule={"base_rate": 0.05, "base_batch": 64})
    common = [path, "--micro-batch", micro_batch, "--noise-scale", 2]
    assert train(*common, "--out", "whole") == 0
    interrupt(monkeypatch, 7)
    assert train(*common, "--out", "parts", "--checkpoint-every", 3) == 130
    monkeypatch.undo()
    monkeypatch.chdir(path.parents[3])
    assert train(*common, "--out", "parts") == 0
    assert same("whole", "parts") and noise("whole") == noise("parts")
    assert [line["step"] for line in noise("parts")] == [2, 4, 6, 8, 10]


def test_a_run_goes_on_as_it_began(recipe, monkeypatch, capsys):
    """Lines that begin in the midst of a run, or end there, would look like those of a whole one."""
    path = recipe()
    interrupt(monkeypatch, 6)
    for out, words in {"with": ["--noise-scale", 2], "without": []}.items():
        assert train(path, "--out", out, *words, "--checkpoint-every", 3) == 130
    monkeypatch.undo()
    monkeypatch.chdir(path.parents[3])
    for out, words, began in (
        ("with", [], "with --noise-scale 2"),
        ("with", ["--noise-scale", 3], "with --noise-scale 2"),
        ("without", ["--noise-scale", 0], "without --noise-scale"),
    ):
        capsys.readouterr()
        assert train(path, "--out", out, *words) == 2
        assert f"is of a run that began {began}. Go on so" in capsys.readouterr().err
    assert train(path, "--out", "with", "--noise-scale", 0) == 0
    assert [line["step"] for line in noise("with")] == [2, 4, 6, 8, 10]


def test_a_frozen_head_is_not_measured(recipe):
    schedule = {"base_rate": 4.0, "base_batch": 64, "frozen_head_epochs": 0.4}
    assert train(recipe(schedule=schedule, epochs=1), "--out", "runs", "--noise-scale", 1) == 0
    first, second, third = [line["layers"] for line in noise("runs")][:3]
    assert first["fc"] is None and second["fc"] is None and third["fc"] is not None and first["conv1"] is not None


def test_a_layer_without_a_rule_is_named(recipe, capsys):
    changes = {"model": {"name": mixing.mixes_examples.__name__}, "data": {"name": "digits", "image_size": 8}}
    assert train(recipe(**changes, optimizer={"name": "sgd"}), "--noise-scale", 5) == 2
    error = capsys.readouterr().err
    assert "'norm'" in error and error.strip().endswith("Train without --noise-scale.")
    assert "Traceback" not in error and not list(Path().rglob("*.json*"))


def test_an_interval_that_is_none(recipe, capsys):
    assert train(recipe(), "--noise-scale", -1) == 2
    assert "--noise-scale -1: a number of steps is needed" in capsys.readouterr().err


ZERO = [pytest.param(f"zero{stage}", marks=pytest.mark.deepspeed) for stage in (1, 2, 3)]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["cpu2", "fsdp2", *ZERO])
@pytest.mark.parametrize("optimizer", ["sgd", "clars"])
def test_two_processes_write_the_lines_of_one(recipe, strategy, optimizer):
    """Those of the global batch, in micro-batches too."""
    rate = {"sgd": 0.01, "clars": 4.0}[optimizer]
    path = recipe(**PLAIN, optimizer={"name": optimizer}, schedule={"base_rate": rate, "base_batch": 256}, epochs=1)
    assert train(path, "--out", "one", "--noise-scale", 1) == 0
    launch(strategy, path, "--out", "two", "--noise-scale", 1, "--micro-batch", 64)
    assert record("two")["world_size"] == 2
    assert close("two", "one", 1e-2)


@pytest.mark.slow
@pytest.mark.deepspeed
def test_one_strategy_goes_on_from_another(recipe):
    path = recipe(**PLAIN, optimizer={"name": "sgd"}, schedule={"base_rate": 0.01, "base_batch": 256})
    assert train(path, "--out", "one", "--noise-scale", 1) == 0
    words = [path, "--out", "two", "--noise-scale", 1]
    disturbed("zero2", "interrupt", 6, *words, "--checkpoint-every", 3, code=1)
    launch("fsdp2", *words)
    assert close("two", "one", 1e-2)
