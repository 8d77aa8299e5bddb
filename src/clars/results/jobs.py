"""What a table or a search still has to run."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from clars.errors import UserError
from clars.recipes.load import Resolved
from clars.recipes.tables import ResolvedTable
from clars.results import record, runs
from clars.results.files import write_json
from clars.results.table import mismatch


@dataclass(frozen=True)
class Job:
    """One run: a recipe with its overrides, a seed, and the folder that will hold run.json."""

    resolved: Resolved
    seed: int
    folder: Path


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


def _is_done(job: Job) -> bool:
    if not (job.folder / record.FILE).exists():
        return False
    run = runs.read_folder(job.folder)
    if reason := mismatch(run, job.resolved):
        raise UserError(
            f"{run.path} is in the way: {reason}. Remove the folder, choose another --out, or replace all runs by"
            " --overwrite."
        )
    return run.record.status != "interrupted"
