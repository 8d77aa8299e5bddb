"""The search for base rates: every method gets the same number of rates and seeds, judged on the validation split."""

import statistics
from pathlib import Path

from clars.errors import RecipeError
from clars.recipes.load import Resolved, load
from clars.recipes.schema import Search
from clars.recipes.tables import ResolvedTable
from clars.results import record, runs
from clars.results.jobs import Job
from clars.results.runs import Run
from clars.results.table import mismatch

FILE = "search.json"
RULE = "highest mean validation top-1 after the last epoch; the smaller of equal rates; a diverged run counts as 0"


def search_jobs(table: ResolvedTable, out: Path) -> list[Job]:
    """Return a job for each method, rate and seed of the table's search.

    Raises:
        RecipeError: the table has no search.
    """
    search = _search(table)
    rates = [(name, rate) for name, rates in search.grid.items() for rate in rates]
    return [job for name, rate in rates for job in _jobs(table.recipes[name], rate, search, out)]


def summarise_search(table: ResolvedTable, out: Path) -> dict:
    """Return what search.json says: each rate with its accuracies in percent, the winners, and what they cost.

    A rate has a mean, and a method a winner, only once all their runs are there. `at_edge` tells that the winner is
    the smallest or the largest rate of its grid, so that a better one may lie beyond.
    """
    search = _search(table)
    found = {job.folder: _finished(job) for job in search_jobs(table, out)}
    done = [run.record for run in found.values() if run]
    methods = {}
    for name, rates in search.grid.items():
        resolved = table.recipes[name]
        tried = [_rate(rate, [found[job.folder] for job in _jobs(resolved, rate, search, out)]) for rate in rates]
        methods[resolved.full_name] = {"recipe_sha256": resolved.sha256, "rates": tried, **_winner(tried)}
    return {
        "table": table.folder,
        "version": table.version,
        "split": "validation",
        "rule": RULE,
        "seeds": search.seeds,
        "methods": methods,
        "budget": {
            "runs_per_method": len(next(iter(search.grid.values()))) * len(search.seeds),
            "runs": len(done),
            "wall_seconds": sum(record.wall_seconds for record in done),
        },
    }


def _search(table: ResolvedTable) -> Search:
    if table.table.search is None:
        raise RecipeError(f"{table.path} has no `search`: name the recipes and the rates to try.")
    return table.table.search


def _jobs(resolved: Resolved, rate: float, search: Search, out: Path) -> list[Job]:
    changed = load(resolved.full_name, [f"schedule.base_rate={rate!r}", "evaluation.split=validation"])
    folder = f"{resolved.short_name}/rate{rate!r}"
    return [Job(changed, seed, runs.folder(out, folder, seed)) for seed in search.seeds]


def _finished(job: Job) -> Run | None:
    """Return the run of a job; None where there is none, or one that does not count."""
    if not (job.folder / record.FILE).exists():
        return None
    run = runs.read_folder(job.folder)
    return None if mismatch(run, job.resolved) or run.record.status == "interrupted" else run


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
