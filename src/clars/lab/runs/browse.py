"""Runs as a person meets them: all below a folder, the seeds of one setting, and what two settings differ in."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from clars.errors import UserError
from clars.lab.runs import layout
from clars.lab.runs.find import read_folder
from clars.lab.runs.record import Run, flat

NOTHING = "Train one by `clars run RECIPE`, or name the folder that was given as --out."


def below(folder: Path) -> Iterator[tuple[Path, Run | None, str]]:
    """Yield the folder of every run below `folder`, in order, with the run, or None and what is wrong with it.

    Raises:
        UserError: there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder. {NOTHING}")
    for path in sorted(folder.rglob(layout.RECORD)):
        try:
            yield path.parent, read_folder(path.parent), ""
        except UserError as error:
            yield path.parent, None, str(error)


def seeds(path: Path) -> list[Run]:
    """Return the run in a folder, or the runs of all seeds in the folders seed<k> below it, by seed.

    Raises:
        UserError: there is none, or a run is not as it was left.
    """
    if (path / layout.RECORD).exists():
        return [read_folder(path)]
    found = [read_folder(folder) for folder in layout.folders(path.parent, path.name)]
    if not found:
        raise UserError(f"{path} holds no run: no {layout.RECORD}, and no folder seed<k> with one. {NOTHING}")
    return sorted(found, key=lambda run: run.record.seed)


@dataclass(frozen=True)
class Comparison:
    """Two settings beside each other: what differs, by name, and numbers as text; the gain of the second in points.

    `gains` are final top-1 of the second minus the first, for each seed that both have and have finished.
    """

    settings: list[tuple[str, str, str]]
    numbers: list[tuple[str, str, str]]
    gains: list[float]


def compare(first: Sequence[Run], second: Sequence[Run]) -> Comparison:
    """Compare the runs of two settings, each of one or more seeds."""
    one, other = settings(first[0]), settings(second[0])
    names = [name for name in {**one, **other} if one.get(name) != other.get(name)]
    differing = [(name, _text(one.get(name)), _text(other.get(name))) for name in names]
    columns = (numbers(first), numbers(second))
    return Comparison(
        differing, [(name, *(column[name] for column in columns)) for name in columns[0]], _gains(first, second)
    )


def settings(run: Run) -> dict[str, object]:
    """Return what decides a run's numbers by its whole name, such as optimizer.momentum, and what it ran on."""
    record = run.record
    found = {"recipe": f"{record.recipe}@{record.version}"} | dict(flat(record.settings or {}))
    machine = {"device": record.device, "strategy": record.strategy, "mixed precision": record.precision}
    return found | machine | {"commit": record.git.commit}


def numbers(runs: Sequence[Run]) -> dict[str, str]:
    """Return what came of runs of one setting, as text by name."""
    records = [run.record for run in runs]
    ended = [record for record in records if record.status == "finished"]
    return {
        "seeds": " ".join(str(record.seed) for record in records),
        "status": ", ".join(sorted({record.status for record in records})),
        "top-1, %": _mean([record.final.top1 for record in ended]),
        "loss": _mean([record.final.loss for record in ended], 4),
        "best top-1, %": _mean([record.best.top1 for record in ended if record.best]),
        "steps": " ".join(sorted({str(record.steps) for record in records})),
        "images a second": _mean([record.examples_per_second for record in records], 0),
        "seconds": _mean([record.wall_seconds for record in records], 1),
    }


def _gains(first: Sequence[Run], second: Sequence[Run]) -> list[float]:
    final = [{run.record.seed: run.record.final.top1 for run in runs if _ended(run)} for runs in (first, second)]
    return [final[1][seed] - final[0][seed] for seed in final[0] if seed in final[1]]


def _ended(run: Run) -> bool:
    return run.record.status == "finished" and run.record.final.top1 is not None


def _mean(values: Sequence[float | None], digits: int = 2) -> str:
    there = [value for value in values if value is not None]
    if not there:
        return ""
    spread = f" ± {statistics.stdev(there):.{digits}f}" if len(there) > 1 else ""
    return f"{statistics.fmean(there):,.{digits}f}{spread}"


def _text(value: object) -> str:
    return "" if value is None or value == {} else str(value)
