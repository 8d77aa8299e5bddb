"""What a table has to run, and how the work is dealt out."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from clars.errors import UserError
from clars.lab import runs
from clars.lab.runs.jobs import Job
from clars.lab.tables.definition import ResolvedTable


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


def shares(jobs: Sequence[Job], launches: int) -> list[list[Job]]:
    """Deal the jobs out to several launches, those with many steps first, so that all end at about the same time."""
    if launches == 1:
        return [list(jobs)]
    ordered = sorted(jobs, key=lambda job: -job.resolved.recipe.epochs / job.resolved.recipe.batch_size)
    return [ordered[number::launches] for number in range(launches)]
