"""What a table or a search still has to run."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from clars.errors import UserError
from clars.recipes.load import Resolved, load
from clars.recipes.tables import ResolvedTable
from clars.results import reading, record, runs
from clars.results.evidence import agree, seed_of
from clars.results.files import write_json
from clars.results.table import mismatch


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


def table_jobs(table: ResolvedTable, seeds: Sequence[int], out: Path, pattern: str | None = None) -> list[Job]:
    """Return a job for each row and seed, of rows whose name fits `pattern` where one is given.

    Raises:
        UserError: no row fits; or the base rate of a row is not known.
    """
    rows = [row for row in table.rows if pattern is None or fnmatchcase(row.name, pattern)]
    if not rows:
        raise UserError(f"--rows {pattern}: fits none of {', '.join(row.name for row in table.rows)}.")
    if lacking := [row for row in rows if row.lacking]:
        raise UserError(
            f"{lacking[0].name}: {lacking[0].lacking}; so it is with {len(lacking)} of {len(rows)} rows. Search by"
            f" `clars tune {table.command} --publish`."
        )
    return [Job(row.resolved, seed, runs.folder(out, row.name, seed)) for row in rows for seed in seeds]


def pending(jobs: Iterable[Job]) -> list[Job]:
    """Return the jobs that have no finished or diverged run yet; interrupted ones can be resumed.

    Raises:
        UserError: a job's folder holds a run that was made with other settings.
    """
    return [job for job in jobs if not _is_done(job)]


def shares(jobs: Sequence[Job], launches: int) -> list[list[Job]]:
    """Deal the jobs out to several launches, those with many steps first, so that all end at about the same time."""
    if launches == 1:
        return [list(jobs)]
    ordered = sorted(jobs, key=lambda job: -job.resolved.recipe.epochs / job.resolved.recipe.batch_size)
    return [ordered[number::launches] for number in range(launches)]


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
    content = reading.read(path, "list of jobs", remedy)
    try:
        entries = TypeAdapter(list[_Entry]).validate_python(content, strict=True)
    except ValidationError as error:
        raise UserError(f"{path} is no list of jobs: {record.first_problem(error)}. {remedy}") from None
    jobs = [Job(load(entry.recipe, entry.overrides), entry.seed, Path(entry.out)) for entry in entries]
    for job in jobs:
        named = seed_of(job.folder / record.FILE)
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


def _is_done(job: Job) -> bool:
    if not (job.folder / record.FILE).exists():
        return False
    run = runs.read_folder(job.folder, job.seed)
    if reason := mismatch(run, job.resolved):
        raise UserError(
            f"{run.path} is in the way: {reason}. Remove the folder, choose another --out, or replace all runs by"
            " --overwrite."
        )
    agree(run.record, job.resolved, run.path)
    return run.record.status != "interrupted"
