"""What a run writes down about itself, by hand: most of it is used by no step, so nothing else would miss it."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from machine import after_steps, lines, record

from clars.lab.evaluation import Scores
from clars.lab.launching.division import Division
from clars.lab.recipes.load import load
from clars.lab.runs.jobs import Job
from clars.lab.runs.resume import Progress
from clars.lab.training import run, script
from clars.lab.training.report import in_force, record_of


def train(*words):
    return script.main([str(word) for word in words])


def test_a_record_by_hand(recipe):
    job = Job(load(str(recipe(ema={"decay": 0.9}))), 4, Path("seed4"))
    now = Progress(1, 7, 0.5, best_top1=60.0, best_epoch=1, train_seconds=4.0, wall_seconds=9.0)
    cut = Division(256, 32, 4, 2)
    machine = {"git": {"commit": None, "dirty": None}, "versions": {}, "device": "cpu: x"}
    machine |= in_force(job, cut, "ddp", Accelerator(cpu=True))
    made = record_of(job, cut, now, Scores(50.0, 90.0, 1.5), "interrupted", machine, None).model_dump()
    expected = {
        **{"recipe": "tiny/small", "version": "v1", "recipe_sha256": job.resolved.sha256, "seed": 4},
        **{"strategy": "ddp", "threads": torch.get_num_threads(), "world_size": 2, "global_batch_size": 256},
        **{"micro_batch_size": 32, "accumulation": 4, "steps": 7, "epochs": 1, "status": "interrupted"},
        **{"final": {"top1": 50.0, "top5": 90.0, "loss": 1.5}, "best": {"top1": 60.0, "epoch": 1}},
        **{"wall_seconds": 9.0, "examples_per_second": 7 * 256 / 4.0, "weights": "ema", "init": None},
    }
    assert {key: made[key] for key in expected} == expected
    assert made["schedule"]["peak_rate"] == 4.0 * 256 / 64


@pytest.mark.parametrize("micro_batch", [256, 64])
def test_the_training_loss_is_the_mean_over_the_steps_of_an_epoch(recipe, monkeypatch, micro_batch):
    losses = []
    original = run.TrainingRun._forward_backward

    def recording(self, x, y):
        losses.append(original(self, x, y))
        return losses[-1]

    monkeypatch.setattr(run.TrainingRun, "_forward_backward", recording)
    assert train(recipe(), "--micro-batch", micro_batch, "--out", "runs") == 0
    assert len(losses) == 2 * 5 * 256 // micro_batch
    means = torch.stack(losses).view(2, -1).double().mean(1).tolist()
    assert [line["train_loss"] for line in lines("runs")] == pytest.approx(means, rel=1e-6)


def test_the_lines_of_an_epoch_and_the_best_of_them(recipe, monkeypatch):
    """Accuracies 30, 70, 70, 50: the best is the first of equal ones, the last is the result."""
    ends = [Scores(top1, 90.0, 1.0 + top1) for top1 in (30.0, 70.0, 70.0, 50.0)]
    monkeypatch.setattr(run.TrainingRun, "_evaluate", lambda self: ends[self.progress.epoch])
    assert train(recipe(epochs=4), "--out", "runs") == 0
    found = [[line[key] for key in ("epoch", "step", "top1", "top5", "val_loss")] for line in lines("runs")]
    assert found == [[n, 5 * n, end.top1, 90.0, end.loss] for n, end in enumerate(ends, start=1)]
    made = record("runs")
    assert (made["best"], made["final"]) == ({"top1": 70.0, "epoch": 2}, {"top1": 50.0, "top5": 90.0, "loss": 51.0})
    times = [line["seconds"] for line in lines("runs")]
    assert times == sorted(times) and made["wall_seconds"] >= times[-1] > times[0] > 0
    assert 0 < made["examples_per_second"] <= 4 * 5 * 256 / (times[-1] - times[0]) * 4


def test_the_time_of_a_gpu_counts_as_training_s(recipe, monkeypatch):
    """Steps are queued there, and what the queue took was waited for after the clock was read."""
    waits, told = [], []
    monkeypatch.setattr(torch.cuda, "synchronize", waits.append)
    gpu = SimpleNamespace(device=torch.device("cuda"))
    original = run.TrainingRun._await_device

    def pretending(self):
        mine, self.accelerator = self.accelerator, gpu
        before = len(waits)
        original(self)
        self.accelerator = mine
        told.extend([self.progress.step + 1] if len(waits) > before else [])
        original(self)

    monkeypatch.setattr(run.TrainingRun, "_await_device", pretending)
    assert train(recipe(layer_statistics=3), "--checkpoint-every", 4, "--out", "runs") == 0
    assert told == [3, 4, 5, 6, 8, 9, 10] and waits == [gpu.device] * len(told)


def test_the_rate_of_a_line_is_that_of_the_next_step(recipe):
    """Constant, after a warmup of 2 steps from the base rate of 4 to 16: the rate is never the peak's before."""
    schedule = {"name": "constant", "base_rate": 4.0, "base_batch": 64, "warmup_epochs": 1.2}
    assert train(recipe(schedule=schedule), "--out", "runs") == 0
    assert [line["lr"] for line in lines("runs")] == pytest.approx([4 + 12 * 5 / 6, 16.0])


def test_statistics_of_layers_are_those_of_their_step(recipe, monkeypatch):
    """Of every third step, each layer once, with the values that the optimizer tells then."""
    seen = {}

    def look(training):
        told = training.inner.layer_stats()
        seen[training.progress.step] = {name: stats._asdict() for name, stats in told.items()}

    after_steps(monkeypatch, look)
    assert train(recipe(layer_statistics=3), "--out", "runs") == 0
    rows = lines("runs", "layers.jsonl")
    expected = [
        {"step": step, "estimator": "exact", "layer": name, **stats}
        for step in (3, 6, 9)
        for name, stats in seen[step].items()
    ]
    finite = json.loads(json.dumps(expected).replace("Infinity", "null"))
    assert rows == finite and len(seen[3]) > 5
