"""The command in a record repeats the run, on another machine too."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
from machine import ROOT, numbers, record, same

from clars.lab import cli
from clars.lab.launching.division import divide
from clars.lab.recipes.load import load
from clars.lab.runs.jobs import Job
from clars.lab.training import script
from clars.lab.training.command import repeating


@pytest.fixture
def repeat(launches):
    """Run a command line of `clars` with its launches in this process; return the configurations that it took."""
    taken = []

    def instead(arguments, config):
        taken.append(config.stem)
        return script.main(arguments)

    launches(instead)

    def run(line):
        program, *words = shlex.split(line)
        assert program == "clars"
        with pytest.raises(SystemExit) as end:
            cli.main(words)
        assert end.value.code == 0
        return taken

    return run


def clone(path, to):
    """A place with the recipes and configurations of this one, and nothing else."""
    shutil.copytree(path.parents[3] / "recipes", to / "recipes")
    shutil.copytree(ROOT / "configs", to / "configs")
    return to


def test_a_run_of_a_list_of_jobs_is_repeated_elsewhere(recipe, repeat, tmp_path, monkeypatch):
    """Every published record named a list of jobs that git does not keep."""
    path = recipe()
    job = {"recipe": "tiny/small@v1", "overrides": ["optimizer.name=lars", "model.arguments={width: 8}"], "seed": 7}
    Path("jobs.json").write_text(json.dumps([job | {"out": "first/table/small/seed7"}]))
    assert script.main(["--jobs", "jobs.json", "--micro-batch", "100"]) == 0
    folder = Path("first/table/small/seed7")
    command = json.loads((folder / "run.json").read_text())["command"]
    assert command == (
        "clars run tiny/small@v1 optimizer.name=lars 'model.arguments={width: 8}' --seed 7 --micro-batch 64"
        " --launch cpu"
    )
    folder.rename(folder.with_name("seed0"))
    monkeypatch.chdir(clone(path, tmp_path / "clone"))
    assert repeat(command) == ["cpu"]
    (run,) = Path("runs/changed/tiny/small").iterdir()
    run.rename(run.with_name("seed0"))
    one, two = "../first/table", "runs/changed/tiny"
    assert same(one, two) and numbers(one) == numbers(two)
    assert (record(one)["micro_batch_size"], record(one)["accumulation"]) == (64, 4)
    assert {key: record(one)[key] for key in ("command", "final", "micro_batch_size")} == {
        key: record(two)[key] for key in ("command", "final", "micro_batch_size")
    }


def test_both_ways_to_start_a_run_put_it_into_the_same_folder(recipe, repeat):
    """`accelerate launch recipes/train.py` put it into another one than `clars run`."""
    recipe(epochs=1)
    shutil.copytree(ROOT / "configs", "configs")
    repeat("clars run tiny/small --seed 1 --launch cpu")
    assert script.main(["tiny/small", "--seed", "2"]) == 0
    repeat("clars run tiny/small optimizer.name=lars --seed 1 --launch cpu")
    assert script.main(["tiny/small", "--seed", "2", "optimizer.name=lars"]) == 0
    found = sorted(str(path.parent) for path in Path("runs").rglob("run.json"))
    assert found == [f"runs/{place}tiny/small/seed{seed}" for place in ("changed/", "") for seed in (1, 2)]


@pytest.mark.parametrize("place", ["mine.yaml", "sub/v1/mine.yaml", "../apart/recipes/other/v1/mine.yaml"])
def test_a_recipe_of_ones_own_is_named_from_where_it_was_run(recipe, repeat, tmp_path, monkeypatch, place):
    """One in a folder called v1 was named as if it stood beside the others, where nothing is found by that name."""
    path = recipe(epochs=1)
    here = tmp_path / "here"
    clone(path, here)
    monkeypatch.chdir(here)
    Path(place).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, place)
    assert script.main([str(Path(place).resolve()), "--out", "first"]) == 0
    command = record("first", "mine")["command"]
    assert command == f"clars run {place} --seed 0 --launch cpu"
    repeat(command)
    repeat(f"clars tune {place} --rates 4 --seeds 3 --launch cpu")
    assert len(list(Path().rglob("run.json"))) == 3


@pytest.mark.parametrize(
    "strategy, processes, device, precision, threads, expected",
    [
        ("single", 1, "cpu", "no", 1, "clars run tiny/small@v1 --seed 3 --launch cpu"),
        ("single", 1, "cuda", "no", 1, "clars run tiny/small@v1 --seed 3 --launch gpu"),
        ("ddp", 2, "cpu", "no", 1, "clars run tiny/small@v1 --seed 3 --micro-batch 64 --launch cpu2"),
        ("zero2", 2, "cuda", "no", 1, "clars run tiny/small@v1 --seed 3 --micro-batch 64 --launch zero2"),
        ("single", 1, "cpu", "no", 4, "OMP_NUM_THREADS=4 clars run tiny/small@v1 --seed 3 --launch cpu"),
        (
            *("ddp", 4, "cuda", "no", 1),
            "OMP_NUM_THREADS=1 accelerate launch --config_file configs/accelerate/ddp.yaml --num_processes 4"
            " recipes/train.py tiny/small@v1 --seed 3",
        ),
        (
            *("fsdp2", 2, "cpu", "bf16", 2),
            "OMP_NUM_THREADS=2 clars run tiny/small@v1 --seed 3 --micro-batch 64 --launch fsdp2 --mixed-precision bf16",
        ),
        (
            *("single", 1, "cuda", "bf16", 1),
            "clars run tiny/small@v1 --seed 3 --launch gpu --mixed-precision bf16",
        ),
        (
            *("ddp", 4, "cuda", "fp16", 1),
            "OMP_NUM_THREADS=1 accelerate launch --config_file configs/accelerate/ddp.yaml --num_processes 4"
            " --mixed_precision fp16 recipes/train.py tiny/small@v1 --seed 3",
        ),
        (
            *("single", 1, "cuda", "fp8", 1),
            "OMP_NUM_THREADS=1 accelerate launch --config_file configs/accelerate/gpu.yaml --mixed_precision fp8"
            " recipes/train.py tiny/small@v1 --seed 3",
        ),
    ],
)
def test_what_changes_rounding_is_part_of_it(recipe, strategy, processes, device, precision, threads, expected):
    recipe()
    job = Job(load("tiny/small"), 3, Path("/home/somebody/runs/seed3"))
    cut = divide(256, processes, 64 if "micro-batch" in expected else None)
    assert repeating(job, cut, strategy, device, precision, threads) == expected
    configuration = shlex.split(expected)
    assert all(Path(ROOT, word).exists() for word in configuration if word.startswith("configs/"))


def test_several_machines_are_told(recipe, monkeypatch):
    recipe()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    job = Job(load("tiny/small"), 3, Path("seed3"))
    line = repeating(job, divide(256, 2, None), "ddp", "cpu", "no", 1)
    assert "configs/accelerate/cpu2.yaml --num_machines 2 --num_processes 2 recipes/train.py" in line
