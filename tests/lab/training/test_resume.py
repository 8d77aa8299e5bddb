"""A run that was broken off goes on to the numbers of one that was not."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from machine import DISTURBED, interrupt, numbers, same
from safetensors import safe_open

from clars.lab.training import script

NO_BATCH_STATISTICS = {
    "model": {"name": "test_convnext2"},
    "data": {"name": "digits", "image_size": 32, "channels": 1},
}
ERASED = {"name": "digits", "image_size": 8, "channels": 1, "random_erasing": 0.5}
CHANGES = {
    **{name: {"optimizer": {"name": name}} for name in ("clars", "lars", "sgd", "lamb")},
    "adamw": {"optimizer": {"name": "adamw", "clip_norm": 1.0}},
    "muon": {"optimizer": {"name": "muon"}, "schedule": {"base_rate": 0.02, "base_batch": 64, "scaling": "sqrt"}},
    "timm.lamb": {"optimizer": {"name": "timm.lamb"}, "schedule": {"base_rate": 0.02, "base_batch": 64}},
    "mixing": {"mixing": {"mixup": 0.2, "cutmix": 1.0}, "data": ERASED},
    "frozen": {"schedule": {"base_rate": 4.0, "base_batch": 64, "frozen_head_epochs": 1.6}},
    "subset": {"optimizer": {"name": "clars", "estimator": "subset", "fraction": 0.25}},
    "dropout": {**NO_BATCH_STATISTICS, "model": {"name": "test_convnext2", "arguments": {"drop_rate": 0.3}}},
}


def train(*words):
    return script.main([str(word) for word in words])


@pytest.mark.parametrize("micro_batch", [256, 64])
@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_in_the_middle_of_an_epoch_bit_for_bit(recipe, monkeypatch, changes, micro_batch):
    """Five steps an epoch; the state is that after step 6, one step into the second epoch, and step 7 is lost."""
    path = recipe(**changes)
    common = [path, "--micro-batch", micro_batch]
    assert train(*common, "--out", "whole") == 0
    interrupt(monkeypatch, 7)
    assert train(*common, "--out", "parts", "--checkpoint-every", 3) == 130
    monkeypatch.undo()
    monkeypatch.chdir(path.parents[3])
    with safe_open("parts/small/seed0/resume.safetensors", "pt") as file:
        assert json.loads(file.metadata()["progress"])["step"] == 6
    assert train(*common, "--out", "parts") == 0
    assert same("whole", "parts")
    assert numbers("whole") == numbers("parts")


@pytest.mark.parametrize("workers", [0, 2])
def test_augmentation_goes_on_too(recipe, pictures, monkeypatch, workers):
    data = {"name": "pictures", "path": str(pictures), "image_size": 16, "augmentation": "crop", "workers": workers}
    path = recipe(data=data, batch_size=4, schedule={"base_rate": 4.0, "base_batch": 4}, epochs=1)
    assert train(path, "--out", "whole") == 0
    interrupt(monkeypatch, 5)
    assert train(path, "--out", "parts", "--checkpoint-every", 2) == 130
    monkeypatch.undo()
    monkeypatch.chdir(path.parents[3])
    assert train(path, "--out", "parts", "--micro-batch", 4) == 0
    assert same("whole", "parts")


def test_the_augmentation_of_an_example_does_not_depend_on_its_batch(recipe, pictures):
    data = {"name": "pictures", "path": str(pictures), "image_size": 16, "augmentation": "imagenet"}
    changes = {"schedule": {"base_rate": 0.05, "base_batch": 12}, "optimizer": {"name": "sgd"}, "epochs": 1}
    model = {"name": "test_convnext2"}
    path = recipe(data=data | {"image_size": 32}, model=model, batch_size=12, **changes)
    assert train(path, "--out", "whole") == 0
    assert train(path, "--out", "cut", "--micro-batch", 3) == 0
    assert numbers("cut")[0]["train_loss"] == pytest.approx(numbers("whole")[0]["train_loss"], rel=1e-5)


def test_an_interval_that_is_none(recipe, capsys):
    assert train(recipe(), "--checkpoint-every", 0) == 2
    assert "--checkpoint-every 0" in capsys.readouterr().err


def state(out):
    """The step of the state on disk, which must be whole; 0 without one."""
    path = Path(f"{out}/small/seed0/resume.safetensors")
    if not path.exists():
        return 0
    with safe_open(path, "pt") as file:
        assert all(file.get_tensor(name) is not None for name in file.keys())  # noqa: SIM118
        return json.loads(file.metadata()["progress"])["step"]


def steps_done(out):
    """The last step in layers.jsonl, whose last line a kill may have cut off."""
    path = Path(f"{out}/small/seed0/layers.jsonl")
    text = path.read_text() if path.exists() else ""
    return max((json.loads(line)["step"] for line in text.split("\n")[:-1]), default=0)


# Children that kill themselves, all but the last, some time after a step was taken, by which the file begins anew. A
# parent that watches them could be kept from running until one is done.
FORKS = """\
import contextlib, os, pathlib, random, signal, sys, threading, time, torch
from accelerate.utils import extract_model_from_parallel
from clars.lab.training import script

def inode():
    path = pathlib.Path("parts/small/seed0/layers.jsonl")
    return path.stat().st_ino if path.exists() else None

def kill(before, seconds):
    while inode() in (None, before):
        time.sleep(0.005)
    time.sleep(seconds)
    os.kill(os.getpid(), signal.SIGKILL)

chance = random.Random(0)
with contextlib.redirect_stdout(sys.stderr):
    extract_model_from_parallel(torch.nn.Linear(1, 1))  # imports DeepSpeed, where it is, once for all children
for number in range(11):
    seconds, child = chance.uniform(0, 0.2), os.fork()
    if not child:
        os.dup2(2, 1)
        if number < 10:
            threading.Thread(target=kill, args=(inode(), seconds), daemon=True).start()
        os._exit(script.main(sys.argv[1:]))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    sys.stdin.readline()
"""


@pytest.mark.slow
def test_killed_at_random_moments(recipe):
    """Ten times at most, then to the end: no state is ever broken, and none is older than an interval."""
    path = recipe(epochs=16, layer_statistics=1)
    assert train(path, "--out", "whole") == 0
    words = [str(path), "--out", "parts", "--checkpoint-every", "2"]
    process = subprocess.Popen(
        [sys.executable, "-c", FORKS, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    resumed_at, began = [], 0
    for _ in range(11):
        code = int(process.stdout.readline())
        if Path("parts/small/seed0/run.json").exists():
            break
        assert code == -signal.SIGKILL
        assert began <= state("parts") and steps_done("parts") - state("parts") <= 2
        began = state("parts")
        resumed_at.append(began)
        print(file=process.stdin, flush=True)
    process.kill()
    assert len(set(resumed_at)) >= 4, resumed_at
    assert same("whole", "parts") and numbers("whole") == numbers("parts")
    assert not list(Path("parts/small/seed0").glob(".*"))


@pytest.mark.parametrize("step", [4, pytest.param(2, marks=pytest.mark.slow), pytest.param(5, marks=pytest.mark.slow)])
def test_killed_in_the_middle_of_writing(recipe, step):
    """After half of the bytes: the state before is untouched, and what was half written is taken away later."""
    path = recipe(layer_statistics=1)
    words = [str(path), "--checkpoint-every", "2"]
    done = subprocess.run([sys.executable, DISTURBED, "half", str(step), *words, "--out", "parts"], capture_output=True)
    assert done.returncode == -signal.SIGXFSZ, done.stderr
    assert state("parts") == {2: 0, 4: 2, 5: 4}[step]
    assert list(Path("parts/small/seed0").glob(".*"))
    assert train(*words, "--out", "parts") == 0
    assert not list(Path("parts/small/seed0").glob(".*"))
    assert train(path, "--out", "whole") == 0
    assert same("whole", "parts")
