"""`--cuda-graph`: what it is refused for, what the record says, and a run whose steps are replayed by a stand-in."""

import os
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from machine import distance, numbers, record
from tape import Tape
from torch import nn

import clars
from clars import native
from clars.errors import UserError
from clars.graphs.graphed import Graphed
from clars.lab import cli
from clars.lab.launching.division import divide
from clars.lab.training import graph, script
from clars.lab.training.command import repeating


def train(*words):
    return script.main([str(word) for word in words])


def a_run(device="cuda", strategy="single", precision="bf16", micro_batch=None, **optimizer):
    inner = clars.CLARS(nn.Linear(2, 2), 1.0, **optimizer)
    accelerator = SimpleNamespace(device=torch.device(device), mixed_precision=precision)
    return SimpleNamespace(accelerator=accelerator, division=divide(64, 1, micro_batch), inner=inner, strategy=strategy)


@pytest.mark.parametrize(
    "run, frozen, noise, words",
    [
        (a_run("cpu"), 0, None, "needs a GPU"),
        (a_run(strategy="fsdp2"), 0, None, "under fsdp2.*Launch with ddp"),
        (a_run(strategy="zero2"), 0, None, "under zero2"),
        (a_run(micro_batch=16), 0, None, "4 micro-batches of 16"),
        (a_run(precision="fp16"), 0, None, "Use bf16"),
        (a_run(estimator="subset"), 0, None, "estimator: subset"),
        (a_run(), 5, None, "frozen_head_epochs"),
        (a_run(), 0, 10, "--noise-scale"),
    ],
)
def test_what_cannot_be_captured_is_refused_by_name(run, frozen, noise, words):
    with pytest.raises(UserError, match=f"--cuda-graph: .*{words}.*leave the option out"):
        graph.step_of(run, print, True, frozen_steps=frozen, noise_every=noise)
    assert graph.step_of(run, print, False, frozen_steps=frozen, noise_every=noise) is print


@pytest.mark.parametrize("strategy", ["single", "ddp"])
def test_what_can_be_captured(strategy):
    taken = graph.step_of(a_run(strategy=strategy), print, True, frozen_steps=0, noise_every=None)
    assert isinstance(taken, Graphed)


def test_a_run_on_the_processor_ends_before_it_begins(recipe, capsys):
    path = recipe(epochs=1)
    assert train(path, "--out", "a", "--cuda-graph") == 2
    assert "--cuda-graph: needs a GPU" in capsys.readouterr().err
    assert not os.path.exists("a/small/seed0/metrics.jsonl")


class Streams:
    """torch.cuda with the streams `main` and `side`, which notes who waits for whom."""

    def __init__(self):
        self.current, self.told = "main", []

    def is_available(self):
        return True

    def Stream(self):
        return self.named("side")

    def current_stream(self):
        return self.named(self.current)

    def named(self, name):
        return SimpleNamespace(name=name, wait_stream=lambda other: self.told.append(f"{name} waits for {other.name}"))

    @contextmanager
    def stream(self, stream):
        before, self.current = self.current, stream.name
        yield
        self.current = before


def test_what_is_prepared_aside_is_waited_for(monkeypatch):
    streams = Streams()
    monkeypatch.setattr(graph.torch, "cuda", streams)
    with graph.aside(True):
        streams.told.append(f"prepared on {streams.current}")
    assert streams.told == ["side waits for main", "prepared on side", "main waits for side"]
    with graph.aside(False):
        assert streams.current == "main"
    assert len(streams.told) == 3


@pytest.mark.parametrize("world, wanted", [(1, None), (2, "0")])
def test_the_environment_of_processes(monkeypatch, world, wanted):
    monkeypatch.delenv("TORCH_NCCL_ASYNC_ERROR_HANDLING", raising=False)
    monkeypatch.setenv("WORLD_SIZE", str(world))
    graph.before_start(False)
    assert "TORCH_NCCL_ASYNC_ERROR_HANDLING" not in os.environ
    graph.before_start(True)
    assert os.environ.pop("TORCH_NCCL_ASYNC_ERROR_HANDLING", None) == wanted


@pytest.mark.parametrize("optimizer", ["clars", "lars", "lamb", "sgd"])
def test_a_run_with_replayed_steps(recipe, monkeypatch, optimizer):
    """Ten steps of a schedule in two epochs: those of the loop, and the layers' statistics with them."""
    path = recipe(optimizer={"name": optimizer}, layer_statistics=1)
    tapes = []

    def tape(device):
        tapes.append(Tape(device))
        return tapes[-1]

    with native.suspended():
        assert train(path, "--out", "plain") == 0
        monkeypatch.setattr(graph, "Graphed", partial(Graphed, capture=tape))
        monkeypatch.setattr(graph, "_problem", lambda *_: None)
        assert train(path, "--out", "graph", "--cuda-graph") == 0
    assert tapes[0].recorded == 1 and tapes[0].replayed == 7
    assert distance("plain", "graph") < 1e-4
    for one, other in zip(numbers("plain"), numbers("graph")):
        assert one["lr"] == other["lr"]
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-4)
    assert " --cuda-graph " in record("graph")["command"] and "--cuda-graph" not in record("plain")["command"]


@pytest.mark.parametrize("asked", [True, False])
def test_the_command_line_passes_it_on(recipe, launches, asked):
    given = []
    launches(lambda arguments, config: given.append(arguments) or 0)
    with pytest.raises(SystemExit) as end:
        cli.main(["run", str(recipe()), *(["--cuda-graph"] if asked else [])])
    assert not end.value.code and ("--cuda-graph" in given[0]) == asked


def test_the_repeating_command(recipe):
    from clars.lab.recipes.load import load
    from clars.lab.runs.jobs import Job

    job = Job(load(str(recipe())), 0, "runs/x")
    cut = divide(256, 1, None)
    assert "--cuda-graph --launch gpu" in repeating(job, cut, "single", "cuda", "no", 1, None, True)
    assert "--cuda-graph" in repeating(job, cut, "single", "cuda", "bf16", 1, None, True)
