"""What `recipes/train.py` does: from a command line to runs, one after the other."""

import argparse
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from clars.errors import UserError
from clars.lab import runs, seeds, terminal
from clars.lab.files import held
from clars.lab.launching import exits, strategy
from clars.lab.launching.faults import explained
from clars.lab.launching.single_process import PRECISIONS
from clars.lab.recipes.load import load
from clars.lab.runs.jobs import Job, pending, precision_of, read_jobs, require_distinct
from clars.lab.training import graph, trackers
from clars.lab.training.display import Display
from clars.lab.training.run import MachineOptions, TrainingRun


def arguments() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="train.py", description="Train recipes on this machine; start it by `accelerate launch`."
    )
    parser.add_argument("recipe", nargs="*", help="recipe names, and key=value to change settings of all of them")
    parser.add_argument("--seed", type=_seed, action="append", help="a seed; may be given several times (default: 0)")
    parser.add_argument(
        "--out",
        type=Path,
        help="runs go to OUT/<recipe>/seed<k> (default: runs/FOLDER, or runs/changed/FOLDER with changes)",
    )
    parser.add_argument("--jobs", type=Path, help="a JSON list of {recipe, overrides, seed, out}, instead of recipes")
    parser.add_argument("--micro-batch", type=int, help="most examples a process handles at once (default: all)")
    parser.add_argument(
        "--mixed-precision", choices=PRECISIONS, help="what the network computes in (default: what the launch says)"
    )
    parser.add_argument("--checkpoint-every", type=int, metavar="STEPS", help="save the state between epochs as well")
    parser.add_argument(
        "--noise-scale", type=int, metavar="STEPS", help="measure the gradient noise scale, and note it every N steps"
    )
    parser.add_argument(
        "--cuda-graph", action="store_true", help="capture the step once on a GPU and replay it: no time on the host"
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=strategy.TIMEOUT,
        metavar="SECONDS",
        help="give up on another process that does not answer (default: %(default)g)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace runs that are over")
    parser.add_argument("--skip-finished", action="store_true", help="leave out runs that are over")
    parser.add_argument("--done", type=int, default=0, help="runs of the whole that are over, for the progress shown")
    parser.add_argument("--log-with", help="a tracker of accelerate: tensorboard, wandb, ... or all")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the jobs of a command line; return the exit code.

    0: all finished; 1: another process was lost; 2: a mistake of the user, said in one line; 3: a run diverged; 130:
    interrupted. After 1 and 130 the same command goes on from the last saved state.
    """
    terminal.prepare()
    options = arguments().parse_intermixed_args(argv)
    return exits.guard(lambda: _run_all(options))


def _run_all(words: argparse.Namespace) -> int:
    options = MachineOptions(
        words.micro_batch, words.overwrite, words.checkpoint_every, words.timeout, words.noise_scale, words.cuda_graph
    )
    jobs = _jobs(words)
    require_distinct(jobs)
    precision = precision_of(jobs, words.mixed_precision)
    if words.skip_finished and not words.overwrite:
        jobs = pending(jobs, precision)
    graph.before_start(options.cuda_graph)
    accelerator = strategy.start(words.log_with, words.timeout, precision)
    worst = exits.FINISHED
    main = accelerator.is_main_process
    with explained(), Display(len(jobs), shown=main, done=words.done) as display:
        for job in jobs:
            with held(job.folder) if main else nullcontext():
                if _run(TrainingRun(job, accelerator, options, display), words.log_with) == "diverged":
                    worst = exits.DIVERGED
        accelerator.end_training()
    return worst


def _run(run: TrainingRun, log_with: str | None) -> str:
    job, accelerator, display = run.job, run.accelerator, run.display
    if log_with:
        trackers.begin(accelerator, job, run.machine)
    result = run()
    for tracker in accelerator.trackers:
        tracker.finish()
    accelerator.trackers = []
    title = f"{job.resolved.full_name} seed {job.seed}"
    display.end(title, f"{result.status}, top-1 {result.final.top1:.2f} %, {result.wall_seconds:.1f} s, {job.folder}")
    accelerator.free_memory()
    return result.status


def _jobs(options: argparse.Namespace) -> list[Job]:
    if options.jobs:
        if options.recipe or options.seed:
            raise UserError("--jobs names recipes and seeds itself; leave the others out.")
        return read_jobs(options.jobs)
    overrides = [word for word in options.recipe if "=" in word]
    names = [word for word in options.recipe if "=" not in word]
    if not names:
        raise UserError("name a recipe; `clars recipes` lists them.")
    resolved = [load(name, overrides) for name in names]
    return [
        Job(one, seed, runs.folder(options.out or runs.default_out(one), one.short_name, seed))
        for one in resolved
        for seed in options.seed or [0]
    ]


def _seed(text: str) -> int:
    number = int(text)
    if wrong := seeds.problem(number):
        raise argparse.ArgumentTypeError(wrong)
    return number
