"""What the numbers say about a claim, by a written rule: differences of two methods, seed by seed."""

import statistics
from dataclasses import dataclass
from pathlib import Path

from clars.lab.recipes.schema import Comparison
from clars.lab.runs.find import Run
from clars.lab.tables.definition import ResolvedTable, TableRow
from clars.lab.tables.summary import counted, interval

PAIRS = 5
HOLDS, FAILS, OPEN = "holds", "does not hold", "not decided"
RULE = (
    "Differences are of the final top-1 accuracy, in points, between runs of the same seed, network and batch; a run"
    " that diverged enters with the accuracy it ended with, 0 if there was none. The interval is that of the mean"
    " difference at 95 %, by Student's t, for each line alone. A claim holds where the whole interval is above 0, does"
    f" not hold where it is below 0, and is not decided otherwise or with fewer than {PAIRS} pairs."
)


@dataclass(frozen=True)
class Cell:
    """The difference in one network and batch: `mean` and `half_width` of its interval, in points, over `n` pairs."""

    network: str | None
    batch: int
    tuned: bool
    n: int
    mean: float | None
    half_width: float | None

    @property
    def verdict(self) -> str:
        """Return what follows from the interval by RULE."""
        if self.n < PAIRS or abs(self.mean) <= self.half_width:
            return OPEN
        return HOLDS if self.mean > 0 else FAILS


@dataclass(frozen=True)
class Judgement:
    """A comparison with its cells, those of both methods that the table has."""

    comparison: Comparison
    first: str
    second: str
    cells: list[Cell]

    @property
    def sentence(self) -> str:
        """Return the verdict over all cells, each counted."""
        if not any(cell.n for cell in self.cells):
            return f"{self.first} minus {self.second}: not run."
        counts = {word: sum(cell.verdict == word for cell in self.cells) for word in (HOLDS, FAILS, OPEN)}
        told = ", ".join(f"{word} in {count}" for word, count in counts.items())
        return f"{self.first} minus {self.second}, {len(self.cells)} cells: the claim {told}."


def judge(table: ResolvedTable, out: Path) -> list[Judgement]:
    """Return a judgement of each comparison of the table from the runs under `out`; none for a tier without result."""
    if not table.tier.result:
        return []
    found = [_judge(comparison, table.rows, out) for comparison in table.head.comparisons]
    return [judgement for judgement in found if judgement.cells]


def accuracy(run: Run) -> float:
    """Return the final top-1 accuracy in percent; that of a diverged run too, 0 where there is none."""
    return run.record.final.top1 or 0.0


def _judge(comparison: Comparison, rows: list[TableRow], out: Path) -> Judgement:
    first, second = (_by_place(rows, name) for name in (comparison.first, comparison.second))
    wanted = comparison.batches
    places = [place for place in first if place in second and (wanted is None or place[1] in wanted)]
    cells = [_cell(place, first[place], second[place], out) for place in places]
    labels = [next(iter(found.values())).label if found else "" for found in (first, second)]
    return Judgement(comparison, *labels, cells)


def _by_place(rows: list[TableRow], method: str) -> dict[tuple, TableRow]:
    own = [row for row in rows if row.plan.method == method]
    return {(row.plan.network, row.resolved.recipe.batch_size, row.plan.tuned): row for row in own}


def _cell(place: tuple, first: TableRow, second: TableRow, out: Path) -> Cell:
    one, other = ({run.record.seed: accuracy(run) for run in counted(row, out)} for row in (first, second))
    differences = [one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())]
    mean = statistics.fmean(differences) if differences else None
    return Cell(*place, len(differences), mean, interval(differences))
