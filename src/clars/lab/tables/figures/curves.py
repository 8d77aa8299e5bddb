"""Accuracy over epochs, a curve a row: the mean over the seeds and the range from the worst to the best of them."""

import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes

from clars.lab.runs.find import Run
from clars.lab.tables.definition import ResolvedTable, TableRow
from clars.lab.tables.figures.looks import ORIGINS, label, looks, origin
from clars.lab.tables.figures.panels import Curve, Panel, Sketch, best_of, title_of
from clars.lab.tables.summary import by_row

THIN = {"linewidth": 0.9, "marker": "", "alpha": 0.8, "zorder": 1.9}
Group = tuple[str | None, int, str]  # network, batch, and where rates come from
CAPTION = "mean of the seeds, band from worst to best"
THINLY = "; thin: at the base batch, where no rate is scaled"


def figure(table: ResolvedTable, out: Path) -> Sketch:
    """Show the rows that have runs, in a panel for each network, batch and origin of rates: each method once.

    Rows at their base batch are the reference, in every panel of their network; they have panels of their own where
    there are no others.
    """
    look, runs = looks(table), by_row(table, out)
    rows = [row for row in table.rows if by_epoch(runs[row.name])]
    groups, bases = _groups(rows)
    several = len({rates for *_, rates in groups}) > 1
    panels = []
    for (network, batch, rates), own in groups.items():
        thin = [row for row in bases if row.plan.network == network]
        panels.append(
            Panel(
                title_of((network, batch), *([ORIGINS[rates]] if several else [])),
                [curve(label(table, row), look[row.plan.method], runs[row.name]) for row in own],
                _frame_of(table),
                [curve(_base_label(table, row), look[row.plan.method] | THIN, runs[row.name]) for row in thin],
                place=(network, batch),
                best=best_of([runs[row.name] for row in own], table),
            )
        )
    return Sketch(panels, CAPTION + (THINLY if bases else ""))


def _groups(rows: Sequence[TableRow]) -> tuple[dict[Group, list[TableRow]], list[TableRow]]:
    """Return the rows of each panel, and those at the base batch of networks that have rows at others."""
    scaled = {row.plan.network for row in rows if not _is_base(row)}
    bases = [row for row in rows if _is_base(row) and row.plan.network in scaled]
    groups: dict[Group, list[TableRow]] = defaultdict(list)
    for row in rows:
        if row not in bases:
            groups[row.plan.network, row.resolved.recipe.batch_size, origin(row)].append(row)
    return groups, bases


def by_epoch(runs: Sequence[Run], key: str = "top1") -> dict[int, list[float]]:
    """Return a number of all runs at each epoch, in order; runs that ended early lack the later ones."""
    values = defaultdict(list)
    for run in runs:
        for line in run.metrics:
            if line.get(key) is not None:
                values[line["epoch"]].append(line[key])
    return dict(sorted(values.items()))


def curve(name: str, look: dict, runs: Sequence[Run], key: str = "top1") -> Curve:
    """Return the curve of a number over the epochs, of all seeds."""
    values = by_epoch(runs, key)
    mean, low, high = ([of(each) for each in values.values()] for of in (statistics.fmean, min, max))
    ended = [by_epoch([run], key) for run in runs if run.record.status == "diverged"]
    ends = [(max(own), own[max(own)][0]) for own in ended if own]
    return Curve(name, look, [*values], mean, (low, high), ends=ends)


def whole_epochs(axes: Axes) -> None:
    """Label the epochs, between which there is nothing."""
    axes.set_xlabel("epoch")
    axes.xaxis.get_major_locator().set_params(integer=True)


def _frame_of(table: ResolvedTable) -> Callable[[Axes], None]:
    splits = sorted({row.resolved.recipe.evaluation.split for row in table.rows})

    def frame(axes: Axes) -> None:
        axes.set(ylabel=f"top-1, {' and '.join(splits)} split, %", ylim=(0, 101))
        axes.margins(x=0.01)
        whole_epochs(axes)

    return frame


def _base_label(table: ResolvedTable, row: TableRow) -> str:
    """Return a row's label with its batch, which a listed row tells itself."""
    return f"{label(table, row)}, batch {row.resolved.recipe.batch_size:,}" if row.plan.network else row.label


def _is_base(row: TableRow) -> bool:
    return row.resolved.recipe.batch_size == row.resolved.recipe.schedule.base_batch
