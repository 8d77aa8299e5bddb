"""What goes wrong on one process, or from outside, ends the whole run soon, says why, and leaves it resumable."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from machine import ROOT, TRAIN, disturbed, launch, line, lines, record

NO_BATCH_STATISTICS = {
    "model": {"name": "test_convnext2"},
    "data": {"name": "digits", "image_size": 32, "channels": 1},
}
needs_deepspeed = pytest.mark.deepspeed
SOON = 90  # seconds; torchrun waits for half of them before it kills a process that does not end


class Running:
    """A launch in the background, and its training processes by rank."""

    def __init__(self, command):
        self.process = subprocess.Popen(
            command,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )

    def ranks(self):
        found = {}
        for child in psutil.Process(self.process.pid).children(recursive=True):
            environment = child.environ()
            alone = any(word.endswith("recipes/train.py") for word in child.cmdline()[1:2])  # has no rank
            if "RANK" in environment or alone:
                found.setdefault(int(environment.get("RANK", 0)), child)
        return found

    def wait_for(self, path):
        deadline = time.monotonic() + SOON
        while not Path(path).exists():
            assert self.process.poll() is None and time.monotonic() < deadline, self.process.stderr.read()[-3000:]
            time.sleep(0.05)

    def end(self, within=SOON):
        try:
            return self.process.wait(timeout=within), self.process.stderr.read()
        finally:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)


@pytest.fixture
def running():
    """A function that starts a launch, which is over at the end of the test at the latest."""
    started = []

    def start(command):
        started.append(Running(command))
        return started[-1]

    yield start
    for one in started:
        for child in [*psutil.Process().children(recursive=True)]:
            child.kill()
        one.process.wait()


STATE = "runs/tiny/small/seed0/resume.safetensors"


@pytest.mark.slow
def test_a_process_that_is_killed(recipe, running):
    """As by a machine that is out of memory. The other process used to end in a traceback of gloo's."""
    path = recipe(**NO_BATCH_STATISTICS, epochs=30)
    run = running(line("cpu2", path, "--checkpoint-every", 2))
    run.wait_for(STATE)
    run.ranks()[1].kill()
    code, errors = run.end()
    assert code == 1
    assert "exitcode  : -9" in errors  # the launcher tells; process 0 may be ended before it can
    assert record("runs/tiny")["status"] == "interrupted"


@pytest.mark.slow
@pytest.mark.parametrize("config", ["cpu2", pytest.param("zero2", marks=needs_deepspeed)])
def test_a_process_that_hangs(recipe, running, config):
    path = recipe(**NO_BATCH_STATISTICS, epochs=30)
    run = running(line(config, path, "--checkpoint-every", 2, "--timeout", 5))
    run.wait_for(STATE)
    run.ranks()[1].suspend()
    began = time.monotonic()
    code, errors = run.end()
    assert code == 1 and time.monotonic() - began > 4
    assert "error: process 0 lost another process" in errors and "did not answer in time" in errors
    assert record("runs/tiny")["status"] == "interrupted"


def test_an_error_on_one_process(recipe):
    path = recipe(**NO_BATCH_STATISTICS)
    errors = disturbed("cpu2", "raise", 4, path, "--checkpoint-every", 2)  # step 3 waits for the state of step 2
    assert "error: data: the disk is gone." in errors
    assert record("runs/tiny")["status"] == "interrupted"


@pytest.mark.slow
def test_a_loss_that_is_not_finite_on_one_process(recipe):
    path = recipe(**NO_BATCH_STATISTICS)
    disturbed("cpu2", "nan", 3, path, code=1)  # accelerate's word for our 3
    assert record("runs/tiny")["status"] == "diverged" and record("runs/tiny")["final"]["loss"] is None


@pytest.mark.slow
@pytest.mark.parametrize(
    "config", ["cpu2", "fsdp2", *(pytest.param(f"zero{n}", marks=needs_deepspeed) for n in (1, 2, 3))]
)
def test_a_gradient_that_is_not_finite_on_one_process(recipe, config):
    """DeepSpeed leaves the step out and goes on, in full precision too; the others take it."""
    disturbed(config, "gradient", 3, recipe(**NO_BATCH_STATISTICS), code=1)
    assert record("runs/tiny")["status"] == "diverged"


def command(path, config):
    """`clars run` in a repository with this one's configurations and script."""
    shutil.copytree(ROOT / "configs", "configs")
    shutil.copy(TRAIN, "recipes")
    start = [sys.executable, "-c", "from clars.lab.cli import main; main()", "run", str(path)]
    return [*start, "--out", "runs/tiny", "--launch", config, "--checkpoint-every", "2"]


@pytest.mark.parametrize(
    "config, number",
    [
        ("cpu2", signal.SIGTERM),
        pytest.param("cpu", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("cpu2", signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_a_signal_to_the_command_alone(recipe, running, config, number):
    """The training processes went on without it, or died of it unsaved."""
    run = running(command(recipe(epochs=500), config))
    run.wait_for(STATE)
    ranks = run.ranks()
    os.kill(run.process.pid, number)
    code, errors = run.end()
    assert code == 130, errors
    assert record("runs/tiny")["status"] == "interrupted" and Path(STATE).exists()
    assert ranks and not any(process.is_running() for process in ranks.values())


@pytest.mark.slow
def test_a_process_that_is_killed_is_no_interruption(recipe, running):
    """torchrun interrupts the others then, which is not what the command may answer."""
    run = running(command(recipe(epochs=500), "cpu2"))
    run.wait_for(STATE)
    run.ranks()[1].kill()
    assert run.end()[0] == 1


@pytest.mark.slow
def test_evaluation_with_an_empty_shard(recipe, pictures):
    """More processes than examples left for the last pass, and none at all for some in every pass."""
    data = {"name": "pictures", "path": str(pictures), "image_size": 16}
    for image in [*(pictures / "test").glob("class*/*.png")][3:]:
        image.unlink()
    path = recipe(data=data, batch_size=12, schedule={"base_rate": 1.0, "base_batch": 12}, epochs=1)
    launch("cpu2", path, "--out", "four", options=("--num_processes", "4"))
    counted = lines("four")[0]["top1"] * 3 / 100
    assert counted == pytest.approx(round(counted), abs=1e-6)
