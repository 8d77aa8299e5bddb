"""The same recipe, launched by accelerate on one process and on two: the same run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from clars.lab.training import script

ROOT = Path(__file__).parents[3]


def launch(machine, *words):
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    command += ["--config_file", str(ROOT / f"configs/accelerate/{machine}.yaml"), "--main_process_port", "0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(ROOT / "recipes/train.py"), *map(str, words)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]


GROUPED = {"name": "clars", "estimator": "group", "group": 8}  # the same groups on one process and on two


@pytest.mark.parametrize(
    "optimizer",
    [{"name": "clars"}, *(pytest.param(each, marks=pytest.mark.slow) for each in ({"name": "lars"}, GROUPED))],
    ids=["clars", "lars", "groups"],
)
def test_two_processes_equal_one(recipe, optimizer):
    path = recipe(
        model={"name": "test_convnext2"},  # no batch statistics, which processes do not share
        data={"name": "digits", "image_size": 32, "channels": 1},
        optimizer=optimizer,
        epochs=1,
    )
    assert script.main([str(path), "--out", "one", "--noise-scale", "2"]) == 0
    launch("cpu2", path, "--out", "two", "--micro-batch", 64, "--noise-scale", 2)
    records = [json.loads(Path(f"{out}/small/seed0/run.json").read_text()) for out in ("one", "two")]
    assert [(r["strategy"], r["world_size"], r["accumulation"]) for r in records] == [("single", 1, 1), ("ddp", 2, 2)]
    same = ("steps", "global_batch_size", "schedule", "status")
    assert [records[0][key] for key in same] == [records[1][key] for key in same]
    metrics = [json.loads(Path(f"{out}/small/seed0/metrics.jsonl").read_text()) for out in ("one", "two")]
    assert metrics[0]["lr"] == metrics[1]["lr"]
    assert metrics[0]["train_loss"] == pytest.approx(metrics[1]["train_loss"], rel=1e-4)
    noise = [Path(f"{out}/small/seed0/noise.jsonl").read_text().splitlines() for out in ("one", "two")]
    for one, two in zip(*([json.loads(line) for line in each] for each in noise), strict=True):
        assert (one["step"], one["noise_scale"]) == (two["step"], pytest.approx(two["noise_scale"], rel=1e-2))
    one, two = (load_file(f"{out}/small/seed0/model.safetensors") for out in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=2e-4, atol=2e-5)
