"""`evaluation.every`: accuracy after some epochs only."""

import json
from pathlib import Path

import pytest
from demo import seal
from machine import interrupt, numbers

from clars.errors import UserError
from clars.lab import runs
from clars.lab.training import script


def train(*words):
    return script.main([str(word) for word in words])


def lines(out):
    return [json.loads(line) for line in Path(f"{out}/small/seed0/metrics.jsonl").read_text().splitlines()]


def test_measured_after_every_second_epoch_and_the_last_and_the_training_is_the_same(recipe, monkeypatch):
    path = recipe(epochs=5)
    assert train(path, "--out", "each") == 0
    assert train(path, "evaluation.every=2", "--out", "some") == 0
    each, some = lines("each"), lines("some")
    assert [line["train_loss"] for line in some] == [line["train_loss"] for line in each]
    measured = [line["top1"] if number in (2, 4, 5) else None for number, line in enumerate(each, start=1)]
    assert [line["top1"] for line in some] == measured
    record = runs.read_folder(Path("some/small/seed0")).record
    assert record.final.top1 == each[-1]["top1"]
    assert record.best.top1 == max(value for value in measured if value is not None)


def test_a_run_that_was_broken_off_after_an_unmeasured_epoch_goes_on(recipe, monkeypatch):
    path = recipe(epochs=3, evaluation={"every": 3})
    assert train(path, "--out", "whole") == 0
    interrupt(monkeypatch, 7)
    assert train(path, "--out", "parts") == 130
    monkeypatch.undo()
    monkeypatch.chdir(path.parents[3])
    assert train(path, "--out", "parts") == 0
    assert numbers("whole") == numbers("parts")


def test_an_accuracy_that_should_be_there_is_missed(recipe):
    path = recipe(epochs=3, evaluation={"every": 2})
    assert train(path, "--out", "runs") == 0
    found = lines("runs")
    found[1]["top1"] = None
    folder = Path("runs/small/seed0")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in found))
    seal(folder)
    with pytest.raises(UserError, match="epoch 2 has no top1"):
        runs.read_folder(folder)
