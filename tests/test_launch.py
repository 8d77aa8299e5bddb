"""`accelerate launch` for real, with a small script in the place of training."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from demo import make_repository

from clars.errors import UserError
from clars.launch import at_once, command, find_config, launch, launch_together

SCRIPT = """\
import json, os, sys, time
from pathlib import Path
import torch
from accelerate import Accelerator
from clars import exits
from clars.errors import DataError


def main():
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    rank = accelerator.process_index
    found = {"processes": accelerator.num_processes, "device": accelerator.device.type, "arguments": sys.argv[2:]}
    found["sum"] = accelerator.reduce(torch.ones(1), "sum").item()
    found["threads"] = torch.get_num_threads()
    Path(f"rank{rank}.json").write_text(json.dumps(found))
    if sys.argv[1] == "wait":
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            time.sleep(1)
            Path("saved").touch()
            raise
    if sys.argv[1] == "mistake":
        raise DataError("no data")
    if sys.argv[1] == "die":
        os._exit(5)
    accelerator.end_training()
    return int(sys.argv[1])


sys.exit(exits.report(exits.guard(main)))
"""


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with this one's configurations and the small script."""
    shutil.copytree(Path(__file__).parents[1] / "configs", tmp_path / "configs")
    root = make_repository(tmp_path, monkeypatch)
    (root / "recipes" / "train.py").write_text(SCRIPT)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return root


def test_the_command_is_short_and_can_be_typed(repository):
    line = command(["demo/small@v1", "--seed=0"], find_config("cpu"))
    assert " ".join(line) == (
        "accelerate launch --quiet --config_file configs/accelerate/cpu.yaml recipes/train.py demo/small@v1 --seed=0"
    )


def test_a_process_has_one_thread_unless_the_environment_says_otherwise(repository, monkeypatch):
    assert not any("threads" in word for word in command([], find_config("cpu")))
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert "--num_cpu_threads_per_process=1" in command([], find_config("cpu"))


def test_an_unknown_configuration_is_told_what_there_is(repository):
    with pytest.raises(UserError, match=r"--launch cpux: not in .*configs/accelerate, which has: .*cpu.*Did you mean"):
        find_config("cpux")
    with pytest.raises(UserError, match=r"--launch mine\.yaml: there is no such file"):
        find_config("mine.yaml")
    assert find_config("configs/accelerate/cpu.yaml") == Path("configs/accelerate/cpu.yaml")


def test_a_configuration_for_gpus_needs_gpus(repository, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="--launch ddp: needs GPUs"):
        launch(["0"], find_config("ddp"))


def test_a_configuration_for_deepspeed_needs_deepspeed(repository, monkeypatch):
    monkeypatch.setattr("clars.launch.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--launch zero2: needs deepspeed.*clars\[deepspeed\]"):
        launch(["0"], find_config("zero2"))


def test_cpu_is_one_process_on_the_cpu(repository, monkeypatch, capfd):
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert launch(["3", "a b", "--flag"], find_config("cpu")) == 3
    found = json.loads(Path("rank0.json").read_text())
    assert found == {"processes": 1, "device": "cpu", "arguments": ["a b", "--flag"], "sum": 1.0, "threads": 1}
    assert not Path("rank1.json").exists()
    out, err = capfd.readouterr()
    assert out.startswith("$ accelerate launch")
    assert "Traceback" not in err


def test_cpu2_is_two_processes_on_the_cpu(repository, capfd):
    assert launch(["3"], find_config("cpu2")) == 3
    for rank in (0, 1):
        found = json.loads(Path(f"rank{rank}.json").read_text())
        assert found == {"processes": 2, "device": "cpu", "arguments": [], "sum": 2.0, "threads": 1}
    assert "Traceback" not in capfd.readouterr().err


def test_a_mistake_is_one_message(repository, capfd):
    assert launch(["mistake"], find_config("cpu")) == 2
    assert capfd.readouterr().err == "error: no data\n"


def test_a_process_that_dies_is_no_success(repository):
    assert launch(["die"], find_config("cpu")) == 1


def test_several_at_once_tell_line_by_line_and_the_gravest_code_counts(repository):
    told = []
    assert launch_together([["3"], ["mistake"]], find_config("cpu"), told.append) == 2
    assert told == ["error: no data"]


def test_as_many_at_once_as_there_are_cores_and_jobs(repository, monkeypatch):
    cpu, cpu2 = find_config("cpu"), find_config("cpu2")
    monkeypatch.setattr("clars.launch.cores", lambda: 32)
    assert [at_once(cpu, jobs, None) for jobs in (3, 100)] == [3, 8]
    assert (at_once(cpu, 100, 16), at_once(cpu2, 100, None), at_once(cpu2, 100, 1)) == (16, 1, 1)
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    assert at_once(cpu, 100, None) == 4
    with pytest.raises(UserError, match="--parallel 2: cpu2 takes the machine for one launch"):
        at_once(cpu2, 100, 2)


@pytest.mark.parametrize("config", ["cpu", "cpu2"])
def test_ctrl_c_waits_until_training_has_saved(repository, config):
    """The launcher used to die at once of the Ctrl-C that the terminal sends to every process, training unsaved."""
    code = f"import sys; from clars.launch import *; sys.exit(launch(['wait'], find_config({config!r})))"
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while not Path("rank0.json").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(0.5)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=60) == 130
        assert Path("saved").exists()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
