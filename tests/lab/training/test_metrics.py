"""The lines of the metrics: what the first says of its epoch, and the same numbers for a spreadsheet."""

import csv
import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from machine import interrupt, numbers

from clars.lab.training import script
from clars.lab.training.first_epoch import PARTS, FirstEpoch


def train(*words):
    return script.main([str(word) for word in words])


def lines(out):
    return [json.loads(line) for line in Path(f"{out}/small/seed0/metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("steps", [1, 7, 20, 33, 1000])
def test_each_part_has_the_mean_of_its_own_steps(steps):
    losses = torch.linspace(3, 1, steps, dtype=torch.float64)
    first = FirstEpoch(steps)
    for step in range(1, steps + 1):
        first.note(step, losses[:step].sum())
    found = first.losses(Accelerator(cpu=True))
    parts = min(PARTS, steps)
    ends = [part * steps // parts for part in range(parts + 1)]
    assert found == pytest.approx([losses[a:b].mean().item() for a, b in pairwise(ends)], rel=1e-12)


def test_the_first_line_has_them_and_they_make_up_its_training_loss(recipe):
    assert train(recipe(epochs=2), "--out", "runs") == 0
    first, second = lines("runs")
    assert "first_epoch_losses" not in second
    losses = first["first_epoch_losses"]
    assert len(losses) == first["step"] <= PARTS  # a part is a step here
    assert sum(losses) / len(losses) == pytest.approx(first["train_loss"], rel=1e-12)
    assert losses[-1] != losses[0]


def test_a_run_that_was_broken_off_within_the_epoch_has_the_same(recipe, monkeypatch):
    path = recipe(epochs=2)
    assert train(path, "--out", "whole") == 0
    interrupt(monkeypatch, 2)
    assert train(path, "--out", "parts", "--checkpoint-every", "1") == 130
    monkeypatch.undo()
    monkeypatch.chdir(path.parents[3])
    assert train(path, "--out", "parts", "--checkpoint-every", "1") == 0
    assert numbers("whole") == numbers("parts")
    assert lines("whole")[0]["first_epoch_losses"] == lines("parts")[0]["first_epoch_losses"]


def test_metrics_are_there_for_a_spreadsheet_as_well(recipe):
    assert train(recipe(epochs=2), "--out", "runs") == 0
    with Path("runs/small/seed0/metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row, line in zip(rows, lines("runs"), strict=True):
        assert {key: float(value) for key, value in row.items() if value} == {
            key: value for key, value in line.items() if isinstance(value, int | float)
        }
