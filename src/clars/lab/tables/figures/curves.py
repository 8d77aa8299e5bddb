"""Accuracy over epochs, a curve a row: the mean over the seeds and the range from the worst to the best of them."""

import statistics
from collections import defaultdict
from itertools import cycle
from math import ceil
from pathlib import Path

from matplotlib.axes import Axes

from clars.lab.recipes.load import Resolved
from clars.lab.runs.find import Run
from clars.lab.tables.definition import ResolvedTable, TableRow
from clars.lab.tables.figures.style import PALETTE, REFERENCES, canvas, heading
from clars.lab.tables.summary import counted


def figure(table: ResolvedTable, out: Path, path: Path) -> None:
    """Draw the rows of `table` that have runs under `out` into the picture `path`, whole or not at all.

    A product has a panel for each network. Rows at their base batch, which need no scaling of the rate, are dashed and
    grey: they are the reference. A cross ends a run that diverged.
    """
    panels: dict[str | None, list[TableRow]] = defaultdict(list)
    for row in table.rows:
        panels[row.plan.network].append(row)
    heights = [4.2 + 0.22 * ceil(len(rows) / 2) for rows in panels.values()]
    with canvas(path, 7.5, sum(heights)) as picture:
        every = picture.subplots(len(panels), squeeze=False, height_ratios=heights).flat
        for axes, (network, rows) in zip(every, panels.items()):
            axes.set(xlabel="epoch", ylabel=_ylabel(table), title=network or "")
            _panel(axes, rows, out)
        picture.suptitle(heading(table), x=0.01, ha="left", weight="bold")


def _panel(axes: Axes, rows: list[TableRow], out: Path) -> None:
    greys, colours = cycle(REFERENCES), cycle(PALETTE)
    for row in rows:
        reference = _is_reference(row.resolved)
        _curve(axes, _label(row), counted(row, out), next(greys if reference else colours), "--" if reference else "-")
    axes.set_ylim(0, 101)
    axes.margins(x=0.01)
    axes.xaxis.get_major_locator().set_params(integer=True)
    if axes.get_legend_handles_labels()[0]:
        title = "line: mean over the seeds; band: from the worst to the best of them"
        axes.legend(
            loc="upper left", bbox_to_anchor=(0, -0.16), ncols=2, columnspacing=3, title=title, alignment="left"
        )
    else:
        axes.text(0.5, 0.5, "not run", transform=axes.transAxes, ha="center", color="#888888", fontsize=16)


def by_epoch(runs: list[Run]) -> dict[int, list[float]]:
    """Return the top-1 accuracies of all runs at each epoch, in order; runs that ended early lack the later ones."""
    values = defaultdict(list)
    for run in runs:
        for line in run.metrics:
            if line.get("top1") is not None:
                values[line["epoch"]].append(line["top1"])
    return dict(sorted(values.items()))


def _curve(axes: Axes, label: str, runs: list[Run], colour: str, linestyle: str) -> None:
    values = by_epoch(runs)
    if not values:
        return
    epochs = list(values)
    diverged = [run for run in runs if run.record.status == "diverged"]
    seeds = f"{len(runs)} seeds" if len(runs) > 1 else "1 seed"
    text = f"{label} ({seeds}{f', {len(diverged)} diverged' if diverged else ''})"
    marker = "o" if len(epochs) == 1 else ""
    axes.plot(
        epochs,
        [statistics.fmean(v) for v in values.values()],
        color=colour,
        linestyle=linestyle,
        marker=marker,
        label=text,
    )
    low, high = [min(v) for v in values.values()], [max(v) for v in values.values()]
    axes.fill_between(epochs, low, high, color=colour, alpha=0.15, linewidth=0)
    for run in diverged:
        if ends := by_epoch([run]):
            last = max(ends)
            axes.plot(last, ends[last][0], "x", color=colour, markersize=8, markeredgewidth=2)


def _label(row: TableRow) -> str:
    """Return the row's label; in a product, methods have the same one for every batch."""
    return row.label if row.plan.network is None else f"{row.label}, batch {row.resolved.recipe.batch_size:,}"


def _is_reference(resolved: Resolved) -> bool:
    return resolved.recipe.batch_size == resolved.recipe.schedule.base_batch


def _ylabel(table: ResolvedTable) -> str:
    splits = sorted({row.resolved.recipe.evaluation.split for row in table.rows})
    return f"top-1 accuracy, {' and '.join(splits)} split, %"
