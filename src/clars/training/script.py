"""What `recipes/train.py` does: from a command line to runs, one after the other."""

import argparse
import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from pydantic import TypeAdapter, ValidationError

from clars import exits
from clars.errors import UserError
from clars.recipes.load import load
from clars.results.jobs import Job, pending
from clars.results.runs import folder
from clars.training.display import Display
from clars.training.run import Options, Run, strategy


def arguments() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="train.py", description="Train recipes on this machine; start it by `accelerate launch`."
    )
    parser.add_argument("recipe", nargs="*", help="recipe names, and key=value to change settings of all of them")
    parser.add_argument("--seed", type=int, action="append", help="a seed; may be given several times (default: 0)")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="runs go to OUT/<recipe>/seed<k>")
    parser.add_argument("--jobs", type=Path, help="a JSON list of {recipe, overrides, seed, out}, instead of recipes")
    parser.add_argument("--micro-batch", type=int, help="most examples a process handles at once (default: all)")
    parser.add_argument("--overwrite", action="store_true", help="replace runs that are over")
    parser.add_argument("--skip-finished", action="store_true", help="leave out runs that are over")
    parser.add_argument("--log-with", help="a tracker of accelerate: tensorboard, wandb, ... or all")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the jobs of a command line; return the exit code.

    0: all finished; 2: a mistake of the user, said in one line; 3: a run diverged; 130: interrupted, and the same
    command goes on from the last whole epoch.
    """
    options = arguments().parse_args(argv)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # job schedulers end a run in this way
    return exits.guard(lambda: _run_all(options))


def _run_all(options: argparse.Namespace) -> int:
    jobs = _jobs(options)
    if options.skip_finished and not options.overwrite:
        jobs = pending(jobs)
    accelerator = _accelerator(options.log_with)
    strategy(accelerator)
    worst = exits.FINISHED
    with Display(len(jobs), shown=accelerator.is_main_process) as display:
        for job in jobs:
            if _run(job, accelerator, options, display) == "diverged":
                worst = exits.DIVERGED
    accelerator.end_training()
    return worst


def _run(job: Job, accelerator: Accelerator, options: argparse.Namespace, display: Display) -> str:
    title = f"{job.resolved.full_name} seed {job.seed}"
    display.begin(f"{job.resolved.short_name} seed {job.seed}")
    run = Run(job, accelerator, Options(options.micro_batch, options.overwrite), display)
    if options.log_with:
        settings = {"recipe": job.resolved.full_name, "seed": job.seed, "sha256": job.resolved.sha256}
        accelerator.project_configuration.logging_dir = str(job.folder)
        accelerator.init_trackers(job.resolved.short_name, settings)
    result = run()
    for tracker in accelerator.trackers:
        tracker.finish()
    accelerator.trackers = []
    display.end(title, f"{result.status}, top-1 {result.final.top1:.2f} %, {result.wall_seconds:.1f} s, {job.folder}")
    accelerator.free_memory()
    return result.status


def _accelerator(log_with: str | None) -> Accelerator:
    try:
        accelerator = Accelerator(cpu=not torch.cuda.is_available(), log_with=log_with, project_dir=".")
    except (ValueError, ImportError) as error:
        raise UserError(f"accelerate cannot start here: {error}") from error
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if launched != accelerator.num_processes:
        raise UserError(
            f"{launched} processes were launched, and accelerate made {accelerator.num_processes} of them one run. "
            "Use a configuration of configs/accelerate."
        )
    return accelerator


def _jobs(options: argparse.Namespace) -> list[Job]:
    if options.jobs:
        if options.recipe or options.seed:
            raise UserError("--jobs names recipes and seeds itself; leave the others out.")
        return _read(options.jobs)
    overrides = [word for word in options.recipe if "=" in word]
    names = [word for word in options.recipe if "=" not in word]
    if not names:
        raise UserError("name a recipe; `clars recipes` lists them.")
    resolved = [load(name, overrides) for name in names]
    return [
        Job(one, seed, folder(options.out, one.short_name, seed)) for one in resolved for seed in options.seed or [0]
    ]


def _read(path: Path) -> list[Job]:
    try:
        entries = TypeAdapter(list[dict]).validate_python(json.loads(path.read_text(encoding="utf-8")))
        return [Job(load(entry["recipe"], entry["overrides"]), entry["seed"], Path(entry["out"])) for entry in entries]
    except (json.JSONDecodeError, ValidationError, KeyError) as error:
        raise UserError(f"{path} is no list of jobs: {error!r}.") from None
