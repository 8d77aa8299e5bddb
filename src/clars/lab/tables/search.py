"""The search for base rates: every method gets the same number of rates and seeds, judged on the validation split."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clars.errors import RecipeError
from clars.lab import runs
from clars.lab.recipes.load import Resolved, load
from clars.lab.recipes.overrides import read, write
from clars.lab.recipes.schema import Changes
from clars.lab.runs import Run, layout
from clars.lab.runs.consistency import agree, mismatch, require_one_precision
from clars.lab.runs.jobs import Job
from clars.lab.tables.definition import SEARCH, ResolvedTable
from clars.lab.tables.rows import RATE

FILE = SEARCH
RULE = "highest mean validation top-1 after the last epoch; the smaller of equal rates; a diverged run counts as 0"


@dataclass(frozen=True)
class Candidate:
    """A recipe whose base rate is searched, by its name in search.json, with the rates to try and their jobs."""

    key: str
    resolved: Resolved
    jobs: dict[float, list[Job]]


def candidates(table: ResolvedTable, out: Path) -> list[Candidate]:
    """Return what the search of a table tries, its runs in folders of `out`.

    Raises:
        RecipeError: the table has no search.
    """
    search = table.tier.search
    if search is None:
        raise RecipeError(f"{table.path} has no `search`: name the methods and the rates to try.")
    found = []
    for source in table.sources:
        resolved = table.load(source.recipe, source.changes)
        folder = out / (source.key if table.tier.product else resolved.short_name)
        found.append(candidate(source.key, resolved, search.grid[source.method], search.seeds, folder, search.set))
    return found


def candidate(
    key: str, resolved: Resolved, rates: Sequence[float], seeds: Sequence[int], folder: Path, changes: Changes
) -> Candidate:
    """Return the jobs of one search: those of each rate, in `folder`/rate<r>/seed<k>."""
    jobs = {}
    for rate in rates:
        given = read(resolved.overrides) | {RATE: rate, "evaluation.split": "validation"} | changes
        changed = load(resolved.full_name, write(given))
        jobs[rate] = [Job(changed, seed, runs.folder(folder, f"rate{rate!r}", seed)) for seed in seeds]
    return Candidate(key, resolved, jobs)


def jobs_of(found: Sequence[Candidate]) -> list[Job]:
    """Return all jobs of a search."""
    return [job for one in found for jobs in one.jobs.values() for job in jobs]


def summarise(found: Sequence[Candidate], name: str, version: str) -> dict:
    """Return what search.json says: each rate with its accuracies in percent, the winners, and what they cost.

    A rate has a mean, and a method a winner, only once all their runs are there. `at_edge` tells that the winner is
    the smallest or the largest rate of its grid, so that a better one may lie beyond.

    Raises:
        UserError: a run contradicts itself or its recipe; or they are of more than one precision.
    """
    ended = {job.folder: _finished(job) for job in jobs_of(found)}
    require_one_precision(run for run in ended.values() if run)
    done = [run.record for run in ended.values() if run]
    methods = {}
    for one in found:
        tried = [_rate(rate, [ended[job.folder] for job in jobs]) for rate, jobs in one.jobs.items()]
        origin = {"recipe_sha256": one.resolved.sha256, "overrides": list(one.resolved.overrides)}
        methods[one.key] = {**origin, "rates": tried, **_winner(tried)}
    per_method = list(found[0].jobs.values())
    return {
        "table": name,
        "version": version,
        "split": "validation",
        "rule": RULE,
        "seeds": [job.seed for job in per_method[0]],
        "methods": methods,
        "budget": {
            "runs_per_method": sum(len(jobs) for jobs in per_method),
            "runs": len(done),
            "wall_seconds": sum(record.wall_seconds for record in done),
        },
    }


def _finished(job: Job) -> Run | None:
    """Return the run of a job; None where there is none, or one that does not count."""
    if not (job.folder / layout.RECORD).exists():
        return None
    run = runs.read_folder(job.folder, job.seed)
    if mismatch(run.record, job.resolved) or run.record.status == "interrupted":
        return None
    agree(run.record, job.resolved, run.path)
    return run


def _rate(rate: float, found: list[Run | None]) -> dict:
    accuracies = [_accuracy(run) for run in found if run]
    return {
        "rate": rate,
        "top1": accuracies,
        "mean": statistics.fmean(accuracies) if all(found) else None,
        "diverged": sum(run.record.status == "diverged" for run in found if run),
    }


def _accuracy(run: Run) -> float:
    return 0.0 if run.record.status == "diverged" else run.record.final.top1


def _winner(tried: list[dict]) -> dict:
    """Choose the rate with the highest mean, the smallest of several; none where every run diverged."""
    if any(entry["mean"] is None for entry in tried) or not any(entry["mean"] for entry in tried):
        return {"winner": None, "at_edge": None}
    best = min(tried, key=lambda entry: (-entry["mean"], entry["rate"]))["rate"]
    rates = [entry["rate"] for entry in tried]
    return {"winner": best, "at_edge": best in (min(rates), max(rates))}
