"""Starting training as a person does, by `accelerate launch`, and comparing what it leaves."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from clars.lab.training import run

ROOT = Path(__file__).parents[1]
TRAIN = ROOT / "recipes" / "train.py"
DISTURBED = Path(__file__).with_name("disturbed.py")
LIMIT = 300  # seconds for a launch, with what it compiles at first


def line(config, *words, options=(), script=TRAIN):
    """The command; a free port is chosen unless `options` name one."""
    start = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--quiet"]
    ports = [] if "--main_process_port" in options else ["--main_process_port", "0"]
    config = ROOT / "configs" / "accelerate" / f"{config}.yaml"
    return [*start, "--config_file", str(config), *ports, *options, str(script), *map(str, words)]


def launch(config, *words, code=0, **arguments):
    """Run it to its end, which must be with `code`; return what it wrote to stderr."""
    done = subprocess.run(
        line(config, *words, **arguments),
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=LIMIT,
    )
    assert done.returncode == code, done.stderr[-3000:]
    return done.stderr


def after_steps(monkeypatch, look):
    """Call `look(run)` after each step of training in this process."""
    original = run.TrainingRun._after_step

    def after(self):
        original(self)
        look(self)

    monkeypatch.setattr(run.TrainingRun, "_after_step", after)


def interrupt(monkeypatch, step):
    """Have training in this process stopped by Ctrl-C after a step."""

    def look(training):
        if training.progress.step == step:
            raise KeyboardInterrupt

    after_steps(monkeypatch, look)


def disturbed(config, kind, step, *words, code=1):
    """Run it with a disturbance."""
    return launch(config, kind, step, *words, script=DISTURBED, code=code)


def record(out, name="small"):
    return json.loads(Path(f"{out}/{name}/seed0/run.json").read_text())


def lines(out, name="metrics.jsonl"):
    return [json.loads(text) for text in Path(f"{out}/small/seed0/{name}").read_text().splitlines()]


def numbers(out):
    """The lines of metrics.jsonl, without times."""
    return [{key: value for key, value in row.items() if key != "seconds"} for row in lines(out)]


def weights(out):
    return load_file(f"{out}/small/seed0/model.safetensors")


def distance(out, other):
    """The largest difference of two runs' weights, relative to the norm of the tensor."""
    a, b = weights(out), weights(other)
    assert a.keys() == b.keys()
    pairs = [(a[name].double(), b[name].double()) for name in a]
    return max(((x - y).norm() / y.norm().clamp_min(1e-6)).item() for x, y in pairs)


def same(out, other):
    """Whether two runs have the same weights, bit for bit."""
    a, b = weights(out), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
