"""How far a method scales: steps to a target accuracy, and the largest batch that costs no accuracy."""

import statistics
from dataclasses import dataclass
from pathlib import Path

from clars.lab.runs.find import Run
from clars.lab.tables.definition import ResolvedTable, TableRow
from clars.lab.tables.summary import counted
from clars.lab.tables.verdict import accuracy

KEPT = 0.5
NOTE = (
    f"The largest batch at which the mean accuracy, and that at every smaller batch, is at most {KEPT} points below the"
    " method's own at its smallest batch; runs that diverged enter with the accuracy they ended with."
)


@dataclass(frozen=True)
class Line:
    """One method on one network over the batches: (batch, runs) in order of the batch."""

    network: str
    label: str
    tuned: bool
    points: list[tuple[int, list[Run]]]


@dataclass(frozen=True)
class Kept:
    """The largest batch of a method on a network that keeps its small-batch accuracy, both in percent."""

    network: str
    label: str
    smallest: int
    accuracy: float
    largest: int


def lines(table: ResolvedTable, out: Path) -> list[Line]:
    """Return a line for each network and method of a product that has runs; tuned rows are lines of their own.

    A tuned line begins with the row at the base batch, where the rate by linear scaling is the tuned one.
    """
    found: dict[tuple, list[TableRow]] = {}
    for row in table.rows:
        if row.plan.network:
            found.setdefault((row.plan.network, row.plan.method, row.plan.tuned), []).append(row)
    result = []
    for (network, method, tuned), rows in found.items():
        if tuned:
            base = [row for row in found[network, method, False] if _is_base(row)]
            rows = [*base, *rows]
        points = [(row.resolved.recipe.batch_size, counted(row, out)) for row in rows]
        points = sorted(((batch, runs) for batch, runs in points if runs), key=lambda point: point[0])
        if points:
            result.append(Line(network, rows[-1].label, tuned, points))
    return result


def kept(line: Line) -> Kept:
    """Return the largest batch up to which the line stays within KEPT points of its beginning."""
    means = [(batch, statistics.fmean(map(accuracy, runs))) for batch, runs in line.points]
    (smallest, reference), *others = means
    largest = smallest
    for batch, mean in others:
        if mean < reference - KEPT:
            break
        largest = batch
    return Kept(line.network, line.label, smallest, reference, largest)


def steps_to(run: Run, target: float) -> float | None:
    """Return the steps until an evaluation gives `target` percent; None for a run that never gets there.

    Between two evaluations the accuracy is taken to rise evenly.
    """
    before = None
    for line in run.metrics:
        if line.get("top1") is None:
            continue
        here = (line["step"], line["top1"])
        if here[1] >= target:
            if before is None:
                return float(here[0])
            return before[0] + (here[0] - before[0]) * (target - before[1]) / (here[1] - before[1])
        before = here
    return None


def _is_base(row: TableRow) -> bool:
    return row.resolved.recipe.batch_size == row.resolved.recipe.schedule.base_batch
