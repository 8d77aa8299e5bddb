"""The command that repeats a run anywhere: in another clone, or with the recipe's file at hand."""

import os
import shlex
from collections.abc import Mapping
from pathlib import Path

from clars.lab.launching.division import Division
from clars.lab.launching.single_process import PRECISIONS
from clars.lab.recipes import registry
from clars.lab.recipes.load import Resolved
from clars.lab.runs.jobs import Job

# What `clars run --launch` calls each strategy, with its processes, on processors and on GPUs.
_NAMED = {
    ("single", 1, "cpu"): "cpu",
    ("single", 1, "cuda"): "gpu",
    ("ddp", 2, "cpu"): "cpu2",
    **{(name, 2, device): name for name in ("fsdp2", "zero1", "zero2", "zero3") for device in ("cpu", "cuda")},
}


def repeating(
    job: Job,
    cut: Division,
    strategy: str,
    device: str,
    precision: str,
    threads: int,
    noise_every: int | None = None,
    cuda_graph: bool = False,
) -> str:
    """Return the command line: the recipe, its overrides, the seed, and of the machine what changes rounding.

    Where the run was made, in which folder, and from which list of jobs is not part of it.

    Args:
        job: recipe and seed.
        cut: how the global batch was divided.
        strategy: the one in force.
        device: the type of the device, cpu or cuda.
        precision: accelerate's word for it, such as no or bf16.
        threads: of a process.
        noise_every: steps between lines of the noise scale, whose measuring forms the gradient in other ways.
        cuda_graph: whether steps were replayed, in which torch's SGD rounds otherwise.
    """
    words = [name_of(job.resolved), *job.resolved.overrides, "--seed", str(job.seed)]
    words += ["--micro-batch", str(cut.micro_batch)] if cut.accumulation > 1 else []
    words += ["--noise-scale", str(noise_every)] if noise_every else []
    words += ["--cuda-graph"] if cuda_graph else []
    named = _NAMED.get((strategy, cut.world_size, device)) if precision in PRECISIONS else None
    if named and _machines(cut.world_size) == 1:
        line = ["clars", "run", *words, "--launch", named]
        line += [] if precision == "no" else ["--mixed-precision", precision]
        one_thread = threads == 1  # which is what `clars run` chooses
    else:
        line, one_thread = [*_accelerate(strategy, cut.world_size, device, precision), *words], False
    return shlex.join(line) if one_thread else f"OMP_NUM_THREADS={threads} {shlex.join(line)}"


def name_of(resolved: Resolved) -> str:
    """Return what a command names a recipe by: name and version, or its file as seen from where the run was made."""
    if registry.holds(resolved.path):
        return resolved.full_name
    return Path(os.path.relpath(resolved.path)).as_posix()


def _accelerate(strategy: str, processes: int, device: str, precision: str) -> list[str]:
    files = {"single": "cpu" if device == "cpu" else "gpu", "ddp": "cpu2" if device == "cpu" else "ddp"}
    line = ["accelerate", "launch", "--config_file", f"configs/accelerate/{files.get(strategy, strategy)}.yaml"]
    options: Mapping[str, object] = {
        "--num_machines": _machines(processes) if _machines(processes) > 1 else None,
        "--num_processes": processes if processes > 1 else None,
        "--mixed_precision": None if precision == "no" else precision,
    }
    line += [word for name, value in options.items() if value is not None for word in (name, str(value))]
    return [*line, "recipes/train.py"]


def _machines(processes: int) -> int:
    return processes // int(os.environ.get("LOCAL_WORLD_SIZE", processes))
