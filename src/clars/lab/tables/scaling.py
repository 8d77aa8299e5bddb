"""How far a method scales: steps to a target accuracy, and the largest batch that costs no accuracy."""

from dataclasses import dataclass
from pathlib import Path

from clars.lab.runs.find import Run
from clars.lab.tables.definition import ResolvedTable, TableRow
from clars.lab.tables.summary import counted
from clars.lab.tables.verdict import mean_accuracy

KEPT = 0.5
NOTE = (
    f"The largest batch at which the mean accuracy, and that at every smaller batch, is at most {KEPT} points below the"
    " method's own at its smallest batch; runs that diverged enter with the accuracy they ended with."
)


@dataclass(frozen=True)
class Line:
    """One method on one network over the batches: (batch, runs) in order of the batch."""

    network: str
    method: str
    label: str
    rates: str
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
    """Return a line for each network, method and origin of rates of a product that has runs.

    Each begins with the row at the base batch, where the rate is the tuned one.
    """
    found: dict[tuple, list[TableRow]] = {}
    for row in table.rows:
        if row.plan.network and not (_is_base(row) and _has_others(table, row)):
            found.setdefault((row.plan.network, row.plan.method, row.plan.rates), []).append(row)
    result = []
    for (network, method, rates), rows in found.items():
        base = [row for row in table.rows if (row.plan.network, row.plan.method) == (network, method) and _is_base(row)]
        rows = [*base, *(row for row in rows if row not in base)]
        points = [(row.resolved.recipe.batch_size, counted(row, out)) for row in rows]
        points = sorted(((batch, runs) for batch, runs in points if runs), key=lambda point: point[0])
        if points:
            result.append(Line(network, method, rows[-1].label, rates, points))
    return result


def kept(line: Line, chance: float | None = None) -> Kept:
    """Return the largest batch up to which the line stays within KEPT points of its beginning."""
    means = [(batch, mean_accuracy(runs, chance)) for batch, runs in line.points]
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


def _has_others(table: ResolvedTable, row: TableRow) -> bool:
    """Tell whether a method has rows at other batches, whose lines begin with this one at the base batch."""
    same = (row.plan.network, row.plan.method)
    return any((other.plan.network, other.plan.method) == same and not _is_base(other) for other in table.rows)
