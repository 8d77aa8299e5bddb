"""`accelerate launch` for real, with a small script in the place of training."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from accelerate.commands import launch as accelerate
from accelerate.utils.launch import prepare_multi_gpu_env, prepare_simple_launcher_cmd_env
from demo import make_repository
from torch.distributed.run import determine_local_world_size

from clars.errors import UserError
from clars.lab.launching import devices
from clars.lab.launching import single_process as alone
from clars.lab.launching.launch import at_once, automatic, command, find_config, launch, launch_together

SCRIPT = """\
import json, os, sys, time
from pathlib import Path
import torch
from accelerate import Accelerator
from clars.lab.launching import exits
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
    shutil.copytree(Path(__file__).parents[3] / "configs", tmp_path / "configs")
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


def test_a_configuration_for_gpus_needs_gpus(repository, gpus):
    gpus(0)
    with pytest.raises(UserError, match="--launch ddp: needs a GPU"):
        launch(["0"], find_config("ddp"))


def test_a_configuration_for_deepspeed_needs_deepspeed(repository, monkeypatch):
    monkeypatch.setattr("clars.lab.launching.launch.find_spec", lambda name: None)
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


@pytest.mark.parametrize("threads", [None, "3"])
@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_one_process_is_started_as_accelerate_would(repository, monkeypatch, name, threads):
    """Without its launcher, which would load torch for nothing else."""
    monkeypatch.delenv("OMP_NUM_THREADS")
    if threads:
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
    words = accelerate.launch_command_parser().parse_args(command(["a", "--b"], find_config(name))[2:])
    line, theirs = prepare_simple_launcher_cmd_env(accelerate._validate_launch_command(words)[0])
    assert line == [sys.executable, "recipes/train.py", "a", "--b"]
    theirs = dict(theirs.items() - os.environ.items()) | {"OMP_NUM_THREADS": threads or "1"}
    assert alone.environment(yaml.safe_load(find_config(name).read_text())) == theirs


@pytest.mark.parametrize(
    "change",
    [
        {"num_processes": 2},
        {"distributed_type": "FSDP"},
        {"mixed_precision": "fp8"},
        {"mixed_precision": False},
        {"num_machines": 2},
        {"use_cpu": "false"},
        {"gpu_ids": "1"},
        {"dynamo_config": {"dynamo_backend": "INDUCTOR"}},
    ],
)
def test_any_other_configuration_is_accelerates(repository, change):
    settings = yaml.safe_load(find_config("gpu").read_text())
    assert alone.environment(settings) and alone.environment(settings | {"mixed_precision": "bf16"})
    assert alone.environment(settings | change) is None


GPUS = [
    (0, [512], "cpu: torch finds no GPU here"),
    (1, [512], "gpu: there is one GPU"),
    (2, [512, 64], "ddp: there are 2 GPUs"),
    (8, [], "ddp: there are 8 GPUs"),
    (3, [96, 512], "gpu: one of 3 GPUs, as they cannot share batch_size=512 equally"),
]
GROUPS = [
    (4, [64, 32], [1, 8], "ddp: there are 4 GPUs"),
    (8, [64, 32], [1, 8], "gpu: one of 8 GPUs, as they cannot share batch_size=32 equally in groups of 8"),
]


@pytest.mark.parametrize("count, batches, told", GPUS)
def test_auto_takes_the_gpus_that_are_there(repository, gpus, capsys, count, batches, told):
    """`clars run` on a machine with GPUs trained on its processor."""
    gpus(count)
    config = find_config("auto", batches)
    assert f"{config.stem}: " == told[:5]
    assert capsys.readouterr().out == f"--launch auto takes {told}\n"
    assert config.exists() and ": ".join(automatic(batches)) == told
    assert find_config("cpu").stem == "cpu" and capsys.readouterr().out == ""


@pytest.mark.parametrize("count, batches, groups, told", GROUPS)
def test_auto_cuts_no_group(gpus, count, batches, groups, told):
    """Eight GPUs were taken for 32 examples in groups of 8, and refused them."""
    gpus(count)
    assert ": ".join(automatic(batches, groups)) == told


@pytest.mark.parametrize("visible", [None, "2,5"])
def test_ddp_takes_the_gpus_that_torch_sees(repository, gpus, monkeypatch, visible):
    """CUDA_VISIBLE_DEVICES chooses them: it is handed on as it is, and torchrun counts what is left."""
    gpus(2)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    words = accelerate.launch_command_parser().parse_args(command(["a"], find_config("ddp"))[2:])
    words = accelerate._validate_launch_command(words)[0]
    environment = prepare_multi_gpu_env(words)
    assert environment.get("CUDA_VISIBLE_DEVICES") == visible
    assert determine_local_world_size(words.nproc_per_node) == 2


@pytest.mark.parametrize("visible", ["", "-1", "NoDevFiles"])
def test_hidden_gpus_are_none(visible):
    """Torch reads the variable once, so in a process of its own."""
    code = "import torch; from clars.lab.launching.launch import automatic; print(automatic()[0])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": visible},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "cpu\n"


@pytest.mark.parametrize("driver, found", [(False, 0), (True, 2)])
def test_torch_is_asked_for_gpus_only_where_there_can_be_some(repository, gpus, monkeypatch, driver, found):
    """To import it takes longer than to answer a mistake."""
    gpus(2)
    monkeypatch.setattr(devices, "sys", SimpleNamespace(modules={}))
    monkeypatch.setattr(devices, "_driver", lambda: driver)
    assert devices.gpus() == found


def test_one_gpu_is_not_quietly_a_processor(repository, gpus):
    gpus(0)
    with pytest.raises(UserError, match=r"--launch gpu: needs a GPU, and torch finds none here\. Choose --launch cpu"):
        launch(["0"], find_config("gpu"))
    assert not Path("rank0.json").exists()


def test_a_gpu_is_for_one_launch_at_a_time(repository):
    assert at_once(find_config("gpu"), 100, None, cores=32) == 1
    with pytest.raises(UserError, match="--parallel 2: gpu takes the machine for one launch"):
        at_once(find_config("gpu"), 100, 2, cores=32)


def test_several_at_once_tell_line_by_line_and_the_gravest_code_counts(repository):
    told = []
    assert launch_together([["3"], ["mistake"]], find_config("cpu"), told.append) == 2
    assert told == ["error: no data"]


def test_as_many_at_once_as_there_are_cores_and_jobs(repository, monkeypatch):
    cpu, cpu2 = find_config("cpu"), find_config("cpu2")
    assert [at_once(cpu, jobs, None, 32) for jobs in (3, 100)] == [3, 8]
    assert (at_once(cpu, 100, 16, 32), at_once(cpu2, 100, None, 32), at_once(cpu2, 100, 1, 32)) == (16, 1, 1)
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    assert at_once(cpu, 100, None, 32) == 4
    with pytest.raises(UserError, match="--parallel 2: cpu2 takes the machine for one launch"):
        at_once(cpu2, 100, 2)


@pytest.mark.parametrize("config", ["cpu", pytest.param("cpu2", marks=pytest.mark.slow)])
def test_ctrl_c_waits_until_training_has_saved(repository, config):
    """The launcher used to die at once of the Ctrl-C that the terminal sends to every process, training unsaved."""
    code = f"import sys; from clars.lab.launching.launch import *; sys.exit(launch(['wait'], find_config({config!r})))"
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
