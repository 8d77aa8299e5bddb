"""The search for base rates: every method gets the same number of rates and seeds, judged on the validation split."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from clars.errors import RecipeError
from clars.lab import runs
from clars.lab.recipes.load import Resolved, load
from clars.lab.recipes.overrides import read, write
from clars.lab.runs import Run, layout
from clars.lab.runs.consistency import agree, mismatch, require_comparable
from clars.lab.runs.jobs import Job
from clars.lab.tables.definition import SEARCH, ResolvedTable
from clars.lab.tables.rows import RATE, Source
from clars.lab.tables.schema import Changes, Search

FILE = SEARCH
RULE = "highest mean validation top-1 after the last epoch; the smaller of equal rates; a diverged run counts as {0:g}"
MOST_RATES = 20  # of a grid that is extended
LEARNT = 1.5  # times the accuracy of guessing


@dataclass(frozen=True)
class Candidate:
    """A recipe whose base rate is searched, by its name in search.json, with the rates to try and their jobs."""

    key: str
    resolved: Resolved
    jobs: dict[float, list[Job]]
    folder: Path
    changes: Changes

    @property
    def seeds(self) -> list[int]:
        """The seeds of every rate."""
        return [job.seed for job in next(iter(self.jobs.values()))]


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
        rates = _grid(search, source)
        found.append(candidate(source.key, resolved, rates, search.seeds, folder, search.set))
    return found


def _grid(search: Search, source: Source) -> list[float]:
    """Return the rates to try, at a batch other than the base times the power of two nearest to what scaling gives."""
    power = {"linear": 1.0, "sqrt": 0.5, "none": 0.0}[search.scaling]
    return [rate * 2.0 ** round(power * math.log2(source.factor)) for rate in search.grid[source.method]]


def extended(found: Sequence[Candidate], chance: float | None) -> list[Candidate]:
    """Return the candidates, each with a rate more beyond the end of its grid where the best lies at one.

    The step is that between the last two rates. A grid whose rates have not all been run, of which none learns, or that
    has MOST_RATES stays as it is.
    """
    return [_extended(one, chance) for one in found]


def _extended(one: Candidate, chance: float | None) -> Candidate:
    rates = sorted(one.jobs)
    best = _winner(_tried(one, {job.folder: _finished(job) for job in jobs_of([one])}, chance), chance)
    if not best["at_edge"] or not 1 < len(rates) < MOST_RATES or not _learns(one, best["winner"], chance):
        return one
    # The quotient first: 0.8 / 0.4 is 2 exactly, and 0.8 * 0.8 / 0.4 is 1.6000000000000003.
    low, high = rates[0] * (rates[0] / rates[1]), rates[-1] * (rates[-1] / rates[-2])
    rates = [low, *rates] if best["winner"] == rates[0] else [*rates, high]
    return candidate(one.key, one.resolved, rates, one.seeds, one.folder, one.changes)


def _learns(one: Candidate, rate: float, chance: float | None) -> bool:
    found = [_accuracy(run, chance) for run in map(_finished, one.jobs[rate]) if run]
    return statistics.fmean(found) > LEARNT * (chance or 0.0)


def candidate(
    key: str, resolved: Resolved, rates: Sequence[float], seeds: Sequence[int], folder: Path, changes: Changes
) -> Candidate:
    """Return the jobs of one search: those of each rate, in `folder`/rate<r>/seed<k>."""
    jobs = {}
    for rate in rates:
        given = read(resolved.overrides) | {RATE: rate, "evaluation.split": "validation"} | changes
        changed = load(resolved.full_name, write(given))
        jobs[rate] = [Job(changed, seed, runs.folder(folder, f"rate{rate!r}", seed)) for seed in seeds]
    return Candidate(key, resolved, jobs, folder, changes)


def jobs_of(found: Sequence[Candidate]) -> list[Job]:
    """Return all jobs of a search."""
    return [job for one in found for jobs in one.jobs.values() for job in jobs]


def summarise(found: Sequence[Candidate], name: str, version: str, chance: float | None = None) -> dict:
    """Return what search.json says: each rate with its accuracies in percent, the winners, and what they cost.

    A rate has a mean, and a method a winner, only once all their runs are there. `at_edge` tells that the winner is
    the smallest or the largest rate of its grid, so that a better one may lie beyond; `usable` are the smallest and the
    largest rate from which on to the best all are within one standard error of it.

    Args:
        found: what was searched.
        name: of the table or recipe.
        version: of it.
        chance: what a diverged run counts as, in percent; 0 by default.

    Raises:
        UserError: a run contradicts itself or its recipe; or they are of more than one precision.
    """
    ended = {job.folder: _finished(job) for job in jobs_of(found)}
    require_comparable([run for run in ended.values() if run])
    done = [run.record for run in ended.values() if run]
    methods = {}
    for one in found:
        tried = _tried(one, ended, chance)
        origin = {"recipe_sha256": one.resolved.sha256, "overrides": list(one.resolved.overrides)}
        methods[one.key] = {**origin, "rates": tried, **_winner(tried, chance)}
    return {
        "table": name,
        "version": version,
        "split": "validation",
        "rule": RULE.format(chance or 0),
        "seeds": found[0].seeds,
        "methods": methods,
        "budget": {
            "runs_per_method": min(sum(map(len, one.jobs.values())) for one in found),
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


def _tried(one: Candidate, ended: Mapping[Path, Run | None], chance: float | None) -> list[dict]:
    return [_rate(rate, [ended[job.folder] for job in jobs], chance) for rate, jobs in one.jobs.items()]


def _rate(rate: float, found: list[Run | None], chance: float | None) -> dict:
    accuracies = [_accuracy(run, chance) for run in found if run]
    return {
        "rate": rate,
        "top1": accuracies,
        "mean": statistics.fmean(accuracies) if all(found) else None,
        "diverged": sum(run.record.status == "diverged" for run in found if run),
    }


def _accuracy(run: Run, chance: float | None) -> float:
    return chance or 0.0 if run.record.status == "diverged" else run.record.final.top1


def _winner(tried: list[dict], chance: float | None) -> dict:
    """Choose the rate with the highest mean, the smallest of several; none where every run diverged."""
    unknown = {"winner": None, "at_edge": None} | ({} if chance is None else {"usable": None})
    if any(entry["mean"] is None for entry in tried) or all(entry["diverged"] == len(entry["top1"]) for entry in tried):
        return unknown
    best = min(tried, key=lambda entry: (-entry["mean"], entry["rate"]))["rate"]
    rates = [entry["rate"] for entry in tried]
    found = {"winner": best, "at_edge": best in (min(rates), max(rates))}
    return found if chance is None else found | {"usable": _usable(tried, best)}


def _usable(tried: list[dict], best: float) -> list[float]:
    """Return the ends of the run of rates around the best that are within one standard error of its mean.

    The error is of the spread of seeds at one rate, pooled over the rates whose means exceed half of the best.
    """
    ordered = sorted(tried, key=lambda entry: entry["rate"])
    place = next(number for number, entry in enumerate(ordered) if entry["rate"] == best)
    top = ordered[place]["mean"]
    spreads = [statistics.variance(entry["top1"]) for entry in ordered if entry["mean"] > top / 2 and entry["top1"][1:]]
    error = math.sqrt(statistics.fmean(spreads) / len(ordered[place]["top1"])) if spreads else 0.0
    low = high = place
    while low > 0 and ordered[low - 1]["mean"] >= top - error:
        low -= 1
    while high + 1 < len(ordered) and ordered[high + 1]["mean"] >= top - error:
        high += 1
    return [ordered[low]["rate"], ordered[high]["rate"]]
