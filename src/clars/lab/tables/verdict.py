"""What the numbers say about a claim, by a written rule: differences of two methods, seed by seed."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from clars.lab.runs.find import Run
from clars.lab.tables.definition import ResolvedTable, TableRow
from clars.lab.tables.schema import Comparison
from clars.lab.tables.summary import counted, interval
from clars.lab.terminal import plural

PAIRS = 5
LEVEL = 0.05
LEARNT = 0.5  # of the reference: what one method has to exceed for a cell to say something
HOLDS, FAILS, OPEN, VOID = "holds", "does not hold", "not decided", "void"
RULE = (
    "Differences are of the final top-1 accuracy, in points, between runs of the same seed, network and batch; a run"
    " that diverged enters with the accuracy it ended with, 0 if there was none. The interval is that of the mean"
    " difference at 95 %, by Student's t, for each line alone. A claim holds where the whole interval is above 0, does"
    f" not hold where it is below 0, and is not decided otherwise or with fewer than {PAIRS} pairs."
)
CORRECTED = (
    "Differences are of the final top-1 accuracy, in points, between runs of the same seed, network and batch; a run"
    " that diverged enters as guessing, {chance:g} %. The interval is that of the mean difference at 95 %, by Student's"
    " t, for each line alone. A line is void where no method exceeds, in the mean, half of the best mean at the"
    " smallest batch of that network. Comparisons marked primary were fixed before the first run: over all of their"
    " lines that are not void, p-values of paired t-tests are corrected by Holm's method, and a claim holds, or does"
    " not hold, where the corrected one is below 0.05. The others are exploratory, and decided by their own interval."
    f" Fewer than {PAIRS} pairs decide nothing."
)


@dataclass(frozen=True)
class Cell:
    """The difference in one network and batch: `mean` and `half_width` of its interval, in points, over `n` pairs.

    `rates` says of which rows: where the rate of the first comes from, and of the second if otherwise. `p` is of a
    paired t-test, corrected for the number of tests where the comparison is primary.
    """

    network: str | None
    batch: int
    rates: str
    n: int
    mean: float | None
    half_width: float | None
    p: float | None = None
    corrected: bool = False
    void: bool = False

    @property
    def verdict(self) -> str:
        """Return what follows by RULE, or by CORRECTED."""
        if self.void:
            return VOID
        decided = self.p < LEVEL if self.corrected and self.p is not None else self._interval_decides
        if self.n < PAIRS or not decided:
            return OPEN
        return HOLDS if self.mean > 0 else FAILS

    @property
    def _interval_decides(self) -> bool:
        return self.half_width is not None and abs(self.mean) > self.half_width


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
        words = (HOLDS, FAILS, OPEN, *([VOID] if any(cell.void for cell in self.cells) else []))
        counts = {word: sum(cell.verdict == word for cell in self.cells) for word in words}
        told = ", ".join(f"{'is ' if word == VOID else ''}{word} in {count}" for word, count in counts.items())
        cells = plural(len(self.cells), "cell")
        return f"{self.first} minus {self.second}, {cells}: the claim {told}."


def judge(table: ResolvedTable, out: Path) -> list[Judgement]:
    """Return a judgement of each comparison of the table from the runs under `out`; none for a tier without result."""
    if not table.tier.result:
        return []
    runs = {row.name: counted(row, out) for row in table.rows}
    found = [_judge(comparison, table, runs) for comparison in table.head.comparisons]
    return _corrected([judgement for judgement in found if judgement.cells])


def rule(table: ResolvedTable) -> str:
    """Return the rule by which the table's comparisons are judged."""
    return RULE if table.head.chance is None else CORRECTED.format(chance=table.head.chance)


def accuracy(run: Run, chance: float | None) -> float:
    """Return the final top-1 accuracy in percent; of a diverged run `chance`, or without that what it ended with."""
    if chance is not None and run.record.status == "diverged":
        return chance
    return run.record.final.top1 or 0.0


def mean_accuracy(runs: Sequence[Run], chance: float | None) -> float:
    """Return the mean of the final accuracies of a row's runs, of which there is one at least."""
    return statistics.fmean(accuracy(run, chance) for run in runs)


def void(table: ResolvedTable, runs: dict[str, list[Run]]) -> set[tuple]:
    """Return the networks with batches in which no method learns, by CORRECTED; none without `chance`."""
    if table.head.chance is None:
        return set()
    best: dict[tuple, float] = {}
    for row in table.rows:
        if own := runs[row.name]:
            place = (row.plan.network, row.resolved.recipe.batch_size)
            best[place] = max(best.get(place, 0.0), mean_accuracy(own, table.head.chance))
    smallest = {network: min(batch for other, batch in best if other == network) for network, _ in best}
    return {place for place, mean in best.items() if mean <= LEARNT * best[place[0], smallest[place[0]]]}


def _judge(comparison: Comparison, table: ResolvedTable, runs: dict[str, list[Run]]) -> Judgement:
    first = _by_place(table.rows, comparison.first, comparison.rates)
    second = _by_place(table.rows, comparison.second, comparison.second_rates or comparison.rates)
    other = comparison.second_rates
    pairs = {place: (*place[:2], other) if other and place[2] != "" else place for place in first}
    wanted, nothing = comparison.batches, void(table, runs)
    cells = []
    for place, twin in pairs.items():
        if twin in second and (wanted is None or place[1] in wanted):
            rates = place[2] if twin == place else f"{place[2]}, {twin[2]}"
            cell = _cell((*place[:2], rates), runs[first[place].name], runs[second[twin].name], table.head.chance)
            cells.append(replace(cell, void=place[:2] in nothing))
    labels = [_label(table, name, found) for name, found in ((comparison.first, first), (comparison.second, second))]
    return Judgement(comparison, *labels, cells)


def _label(table: ResolvedTable, method: str, found: dict[tuple, TableRow]) -> str:
    product = table.tier.product
    if product and product.rates and method in product.methods:
        return product.methods[method].label
    return next(iter(found.values())).label if found else ""


def _by_place(rows: list[TableRow], method: str, rates: str | None) -> dict[tuple, TableRow]:
    """Return a method's rows by network, batch and the origin of their rates, "" at the base batch of several."""
    own = [row for row in rows if row.plan.method == method]
    found = {(row.plan.network, row.resolved.recipe.batch_size, _origin(row)): row for row in own}
    return {place: row for place, row in found.items() if rates is None or place[2] in (rates, "")}


def _origin(row: TableRow) -> str:
    schedule = row.resolved.recipe.schedule
    at_base = row.plan.tuned and row.resolved.recipe.batch_size == schedule.base_batch
    return "" if at_base else row.plan.rates


def _cell(place: tuple, first: Sequence[Run], second: Sequence[Run], chance: float | None) -> Cell:
    one, other = ({run.record.seed: accuracy(run, chance) for run in own} for own in (first, second))
    differences = [one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())]
    mean = statistics.fmean(differences) if differences else None
    return Cell(*place, len(differences), mean, interval(differences), _p(differences))


def _p(differences: Sequence[float]) -> float | None:
    """Return the two-sided p-value of Student's t for a mean difference of 0; None for fewer than two."""
    if len(differences) < 2:
        return None
    spread = statistics.stdev(differences)
    if spread == 0:
        return 0.0 if any(differences) else 1.0
    from scipy import stats

    t = statistics.fmean(differences) / spread * len(differences) ** 0.5
    return float(2 * stats.t.sf(abs(t), len(differences) - 1))


def _corrected(judgements: list[Judgement]) -> list[Judgement]:
    """Correct the p-values of primary comparisons by the method of Holm (1979), over all of their cells together."""
    tests = [
        (cell.p, number, place)
        for number, judgement in enumerate(judgements)
        if judgement.comparison.primary
        for place, cell in enumerate(judgement.cells)
        if not cell.void and cell.p is not None
    ]
    least, values = 0.0, {}
    for rank, (p, number, place) in enumerate(sorted(tests)):
        least = max(least, min(1.0, p * (len(tests) - rank)))
        values[number, place] = least
    return [
        replace(
            judgement, cells=[_with(cell, values.get((number, place))) for place, cell in enumerate(judgement.cells)]
        )
        for number, judgement in enumerate(judgements)
    ]


def _with(cell: Cell, p: float | None) -> Cell:
    return cell if p is None else replace(cell, p=p, corrected=True)
