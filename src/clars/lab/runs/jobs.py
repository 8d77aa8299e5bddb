"""Runs to be made, each with its folder, and which of them are still to do."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from clars.errors import UserError
from clars.lab import strict_json
from clars.lab.files import write_json
from clars.lab.recipes.load import Resolved, load
from clars.lab.runs import find, layout, record
from clars.lab.runs.consistency import agree, mismatch


@dataclass(frozen=True)
class Job:
    """One run: a recipe with its overrides, a seed, and the folder that will hold run.json."""

    resolved: Resolved
    seed: int
    folder: Path


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid")

    recipe: Annotated[str, Field(min_length=1)]
    overrides: list[str]
    seed: record.Seed
    out: Annotated[str, Field(min_length=1)]


def pending(jobs: Iterable[Job], precision: str | None = None) -> list[Job]:
    """Return the jobs that have no finished or diverged run yet; interrupted ones can be resumed.

    Args:
        jobs: what is asked for.
        precision: in which it is asked for; None for any.

    Raises:
        UserError: a job's folder holds a run that was made with other settings, or one that is over in another
            precision.
    """
    return [job for job in jobs if not _is_done(job, precision)]


def write_jobs(jobs: Iterable[Job], path: Path) -> None:
    """Write the list that `recipes/train.py --jobs` reads: recipe, overrides, seed and out of each job."""
    entries = [
        {
            "recipe": job.resolved.full_name,
            "overrides": list(job.resolved.overrides),
            "seed": job.seed,
            "out": str(job.folder),
        }
        for job in jobs
    ]
    write_json(path, entries)


def read_jobs(path: Path) -> list[Job]:
    """Read the list that `write_jobs` wrote.

    Raises:
        UserError: it is no such list, or a seed or folder of it cannot be used.
    """
    remedy = "See `clars table` for how one is made."
    content = strict_json.read(path, "list of jobs", remedy)
    try:
        entries = TypeAdapter(list[_Entry]).validate_python(content, strict=True)
    except ValidationError as error:
        raise UserError(f"{path} is no list of jobs: {record.first_problem(error)}. {remedy}") from None
    jobs = [Job(load(entry.recipe, entry.overrides), entry.seed, Path(entry.out)) for entry in entries]
    for job in jobs:
        named = layout.seed_of(job.folder / layout.RECORD)
        if named not in (None, job.seed):
            raise UserError(f"{path}: a run of seed {job.seed} would lie in {job.folder}. Give it another folder.")
    return jobs


def require_distinct(jobs: Sequence[Job]) -> None:
    """Check that each job has a folder of its own.

    Raises:
        UserError: two runs would lie in one.
    """
    taken: dict[Path, Job] = {}
    for job in jobs:
        if taken.setdefault(job.folder.absolute(), job) is not job:
            raise UserError(f"{job.folder}: two of the runs asked for would lie there. Ask for each once.")


def precision_of(jobs: Sequence[Job], asked: str | None) -> str | None:
    """Return what all jobs are to compute in, as accelerate calls it; None leaves it to the launch.

    Args:
        jobs: their recipes may state a precision.
        asked: on the command line; None for nothing.

    Raises:
        UserError: a recipe states another than is asked for, or recipes state several.
    """
    by_precision: dict[str | None, str] = {}
    for job in jobs:
        recipe = job.resolved.recipe
        if asked is not None and recipe.mixed_precision not in (None, asked):
            raise UserError(
                f"--mixed-precision {asked}: {job.resolved.full_name} has precision {recipe.precision}. Leave one of"
                " them out, or set precision as well."
            )
        by_precision.setdefault(asked or recipe.mixed_precision, job.resolved.full_name)
    if len(by_precision) > 1:
        listed = ", ".join(f"{name} in {precision or 'no stated one'}" for precision, name in by_precision.items())
        raise UserError(f"One launch computes in one precision, and recipes ask for several: {listed}. Run them apart.")
    return next(iter(by_precision), asked)


def _is_done(job: Job, precision: str | None) -> bool:
    if not (job.folder / layout.RECORD).exists():
        return False
    run = find.read_folder(job.folder, job.seed)
    reason, over = mismatch(run.record, job.resolved), run.record.status != "interrupted"
    if over and precision not in (None, run.record.precision):
        reason = reason or f"it was made in mixed precision {run.record.precision}, not {precision}"
    if reason:
        raise UserError(
            f"{run.path} is in the way: {reason}. Remove the folder, choose another --out, or replace all runs by"
            " --overwrite."
        )
    agree(run.record, job.resolved, run.path)
    return over
