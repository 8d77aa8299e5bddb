"""Each configuration brings its own strategy into force, with the same numbers; a state of one goes on under any."""

import json
import os
import random
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from machine import DISTURBED, LIMIT, ROOT, TRAIN, distance, disturbed, launch, line, numbers, record

from clars.errors import UserError
from clars.lab.launching import strategy
from clars.lab.launching.single_process import environment as environment_of
from clars.lab.training import script

needs_deepspeed = pytest.mark.deepspeed
SHARDED = [
    pytest.param("fsdp2", id="fsdp2"),
    *(pytest.param(f"zero{n}", marks=needs_deepspeed, id=f"zero{n}") for n in (1, 2, 3)),
]
EXACT = 1e-5  # relative to the norm of each tensor, after ten steps


@pytest.fixture
def small(recipe):
    """A recipe without batch statistics, which processes do not share."""

    def write(**changes):
        settings = {"model": {"name": "test_convnext2"}, "data": {"name": "digits", "image_size": 32, "channels": 1}}
        return recipe(**settings | changes)

    return write


def alone(path, out):
    """One process, which is this one."""
    assert script.main([str(path), "--out", out]) == 0


def agree(out, other):
    """The same run: steps, rates, losses, accuracy, weights."""
    for row, expected in zip(numbers(out), numbers(other), strict=True):
        within, wanted = row.pop("first_epoch_losses", []), expected.pop("first_epoch_losses", [])
        assert row == pytest.approx(expected, rel=1e-4)
        assert within == pytest.approx(wanted, rel=1e-4)
        assert (row["step"], row["lr"], row["top1"]) == (expected["step"], expected["lr"], expected["top1"])
    assert distance(out, other) < EXACT


@pytest.mark.slow
@pytest.mark.parametrize("config", ["cpu2", *SHARDED])
def test_killed_in_the_middle_of_writing(small, config):
    """The process that writes is; the launcher ends the other, and the same command goes on from the state before."""
    words = [small(), "--checkpoint-every", 2]
    disturbed(config, "half", 4, *words, "--out", "parts")
    assert list(Path("parts/small/seed0").glob(".*resume*")) and not Path("parts/small/seed0/run.json").exists()
    errors = launch(config, *words, "--out", "parts")
    assert "going on after epoch 0, step 2" in errors
    assert not list(Path("parts/small/seed0").glob(".*"))
    launch(config, *words, "--out", "whole")
    agree("parts", "whole")


@pytest.mark.slow
@pytest.mark.parametrize("config", SHARDED)
def test_sharded_strategies_are_in_force_and_equal_one_process(small, config):
    path = small()
    alone(path, "one")
    launch(config, path, "--out", config, "--micro-batch", 64)
    found = record(config)
    assert (found["strategy"], found["world_size"], found["accumulation"]) == (config, 2, 2)
    agree(config, "one")


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["lars", "sgd"])
@pytest.mark.parametrize("config", SHARDED)
def test_other_optimizers_too(small, config, optimizer):
    rate = {"base_rate": 0.05 if optimizer == "sgd" else 4.0, "base_batch": 64}
    path = small(optimizer={"name": optimizer}, schedule=rate)
    alone(path, "one")
    launch(config, path, "--out", config, options=("--num_processes", "4" if config == "fsdp2" else "2"))
    agree(config, "one")


def chain(path, *parts):
    """Train as configuration, processes, step to interrupt after: each goes on from the last one's state."""
    for config, processes, step in parts:
        options = () if config == "cpu" else ("--num_processes", str(processes))
        words = (path, "--out", "parts", "--checkpoint-every", 1)
        if step is None:
            launch(config, *words, options=options)
        else:
            command = line(config, "interrupt", step, *words, options=options, script=DISTURBED)
            subprocess.run(command, capture_output=True, timeout=LIMIT)
            assert (record("parts")["status"], record("parts")["steps"]) == ("interrupted", step)
        assert record("parts")["strategy"] == {"cpu": "single", "cpu2": "ddp"}.get(config, config)


@needs_deepspeed
def test_a_state_goes_on_under_any_strategy(small):
    path = small()
    alone(path, "whole")
    chain(path, ("zero3", 2, 3), ("fsdp2", 2, 7), ("cpu", 1, None))
    agree("parts", "whole")


@pytest.mark.slow
@needs_deepspeed
@pytest.mark.parametrize("optimizer", ["clars", "sgd"])
def test_and_any_number_of_processes(small, optimizer):
    path = small(
        optimizer={"name": optimizer},
        schedule={"base_rate": 4.0 if optimizer == "clars" else 0.05, "base_batch": 64},
        batch_size=240,
    )
    alone(path, "whole")
    chain(path, ("zero2", 3, 2), ("zero3", 4, 3), ("cpu2", 2, 4), ("fsdp2", 4, 6), ("zero1", 1, 8), ("zero2", 2, None))
    agree("parts", "whole")


@pytest.mark.slow
@needs_deepspeed
def test_master_weights_go_with_the_state(small):
    """DeepSpeed makes them anew from weights that it has rounded to bfloat16."""
    path, options = small(), ("--mixed_precision", "bf16")
    launch("zero2", path, "--out", "whole", options=options)
    command = line("zero2", "interrupt", 7, path, "--checkpoint-every", 3, options=options, script=DISTURBED)
    subprocess.run(command, capture_output=True, timeout=LIMIT)
    launch("zero2", path, options=options)
    assert distance("runs/tiny", "whole") == 0


@pytest.mark.slow
@needs_deepspeed
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_optimizer_in_the_memory_of_the_machine(small, stage):
    """accelerate would put DeepSpeed's Adam in its place."""
    path = small()
    alone(path, "one")
    launch(f"zero{stage}", path, "--out", "off", options=("--offload_optimizer_device", "cpu"))
    assert record("off")["strategy"] == f"zero{stage}"
    agree("off", "one")


@pytest.mark.slow
def test_two_machines(small):
    """Two launchers, with a rendezvous of their own, each with a process."""
    path = small(epochs=1)
    alone(path, "one")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = ["--num_machines", "2", "--num_processes", "2", "--main_process_port", str(port)]
    started = [
        subprocess.Popen(
            line("multinode", path, "--out", "two", options=(*common, "--machine_rank", str(rank))),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        ends = [process.communicate(timeout=LIMIT)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], ends
    assert (record("two")["strategy"], record("two")["world_size"]) == ("ddp", 2)
    agree("two", "one")


SRUN = """\
#!/usr/bin/env bash
shift
for node in 0 1; do SLURM_NODEID=$node "$@" & done
wait -n && wait -n
"""


@pytest.mark.slow
def test_the_slurm_template(small, tmp_path):
    """Its commands, with an srun that starts both machines' here."""
    path = small(epochs=1)
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    shutil.copy(TRAIN, tmp_path / "recipes")
    tools = tmp_path / ".venv" / "bin"
    tools.mkdir(parents=True)
    (tools / "activate").write_text(f"export PATH={tools}:$PATH\n")
    accelerate = f'#!/bin/sh\nexec {sys.executable} -m accelerate.commands.accelerate_cli "$@"\n'
    for name, text in {"srun": SRUN, "accelerate": accelerate, "scontrol": "#!/bin/sh\necho 127.0.0.1\n"}.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    job = {"SLURM_NNODES": "2", "SLURM_JOB_ID": str(random.randrange(20000)), "SLURM_JOB_NODELIST": "a,b", "GPUS": "1"}
    template = tmp_path / "configs" / "slurm" / "train.sbatch"
    done = subprocess.run(
        ["bash", template, path], env=os.environ | job, capture_output=True, text=True, cwd=tmp_path, timeout=LIMIT
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (record("runs")["strategy"], record("runs")["world_size"]) == ("ddp", 2)


REFUSED = [
    ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "fsdp_version: 1"),
    ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "ACCELERATE_USE_CPU": "true"}, "use_cpu"),
    ({"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_USE_CPU": "true"}, "use_cpu"),
    ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "Megatron-LM"),
    ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "parallelism_config"),
]


@pytest.mark.parametrize("environment, message", REFUSED)
def test_what_accelerate_would_leave_out_or_split_otherwise_is_refused(monkeypatch, environment, message):
    for name, value in {"LOCAL_RANK": "0", **environment}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        strategy.asked()


@pytest.mark.parametrize("config, on_cpu", [("gpu", False), ("cpu", True)])
def test_one_process_is_where_its_configuration_says(monkeypatch, gpus, config, on_cpu):
    """No strategy on a GPU either; a processor stays one where there is a GPU."""
    settings = yaml.safe_load((ROOT / "configs" / "accelerate" / f"{config}.yaml").read_text())
    gpus(1)
    for name, value in environment_of(settings).items():
        monkeypatch.setenv(name, value)
    assert (strategy.asked(), strategy._on_cpu()) == ("single", on_cpu)


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize(
    "settings, message",
    [
        ({"gradient_clipping": 1.0}, "gradient_clipping = 1.0"),
        ({"optimizer": {"type": "Adam", "params": {"lr": 1.0}}}, "section 'optimizer'"),
        ({"zero_optimization": {"stage": 0}}, "stage = 0"),
    ],
)
def test_a_deepspeed_configuration_that_changes_the_numbers_is_refused(small, tmp_path, settings, message):
    Path("deepspeed.json").write_text(json.dumps({"zero_optimization": {"stage": 2}} | settings))
    Path("own.yaml").write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: DEEPSPEED\nnum_machines: 1\nnum_processes: 1\n"
        "deepspeed_config: {deepspeed_config_file: deepspeed.json, zero3_init_flag: false}\n"
    )
    words = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file", "own.yaml"]
    done = subprocess.run(
        [*words, "--main_process_port", "0", line("cpu")[-1], str(small())], capture_output=True, text=True
    )
    assert done.returncode == 1 and message in done.stderr
    assert not list(Path().rglob("run.json"))


@pytest.mark.slow
def test_folders_that_processes_do_not_share(small, tmp_path):
    """A state on one machine's own disk: the other processes would begin anew."""
    path = small()
    disturbed("cpu", "interrupt", 3, path, "--out", tmp_path / "0", "--checkpoint-every", 1)
    own = tmp_path / "own_folder.py"
    own.write_text(
        "import os, sys\nfrom clars import exits\nfrom clars.lab.training import script\n"
        "sys.exit(exits.report(script.main([*sys.argv[1:], '--out', os.environ['RANK']])))\n"
    )
    errors = launch("cpu2", path, script=own, code=1)
    assert "would go on from the steps [0, 3]" in errors
