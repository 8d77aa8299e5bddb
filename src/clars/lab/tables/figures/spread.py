"""How far the gradients of examples cancel: S / ||g|| of every layer over the first steps, beside the batch's root."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from clars.lab.runs import layers
from clars.lab.runs.layers import LayerHistory
from clars.lab.tables.definition import ResolvedTable, TableRow
from clars.lab.tables.figures.depth import LACKING, by_depth, name_depths
from clars.lab.tables.figures.panels import Curve, Panel, Sketch, title_of
from clars.lab.tables.figures.style import logarithmic
from clars.lab.tables.summary import by_row

STEPS = 100
_HEIGHT = 3.0  # inches of a panel
CAPTION = (
    f"mean norm of the examples' gradients over the norm of their mean, first {STEPS} steps,"
    " geometric mean of the seeds; a thin line for each layer"
)


def figure(table: ResolvedTable, out: Path) -> Sketch:
    """Show each row that has per-example norms: a curve for each layer, the geometric mean of its runs."""
    runs, panels = by_row(table, out), []
    for row in table.rows:
        if histories := [history for history in map(layers.read, runs[row.name]) if history]:
            panels.append(_panel(row, histories))
    return Sketch(panels, CAPTION, LACKING, columns=1)


def _panel(row: TableRow, histories: list[LayerHistory]) -> Panel:
    steps, names = histories[0].steps, histories[0].layers
    until = min(sum(step <= STEPS for step in steps), *(len(history.steps) for history in histories))
    ratios = np.ma.stack([_ratio(history)[:until] for history in histories])  # [runs, steps, layers]
    means = np.ma.exp(np.ma.log(ratios).mean(axis=0))
    colors = by_depth(len(names))
    curves = [
        # The bar of colours names the layers; the legend leaves out what begins with an underscore.
        Curve(f"_{name}", {"color": colors[index], "linewidth": 1.0}, steps[:until], _known(means[:, index]))
        for index, name in enumerate(names)
    ]
    batch = row.resolved.recipe.batch_size
    median = Curve(
        "median of the layers",
        {"color": "black", "linewidth": 2.4, "zorder": 3},
        steps[:until],
        _known(np.ma.median(means, axis=1)),
    )
    place = (row.plan.network, batch)
    return Panel(title_of(place, row.label), curves, _frame_of(batch, names), [median], place, height=_HEIGHT)


def _frame_of(batch: int, names: list[str]) -> Callable[[Axes], None]:
    def frame(axes: Axes) -> None:
        axes.axhline(math.sqrt(batch), color="#777777", linestyle="--", label="root of the batch")
        axes.set(yscale="log", xlabel="step", ylabel="S / ||g||")
        logarithmic(axes.yaxis)
        name_depths(axes, names, _HEIGHT - 0.7)

    return frame


def _known(values: np.ma.MaskedArray) -> list[float]:
    return np.ma.asarray(values).filled(np.nan).tolist()


def _ratio(history: LayerHistory) -> np.ma.MaskedArray:
    """Return S / ||g|| [steps, layers], masked where it was not measured or the mean gradient is zero."""
    columns = (np.array(history.columns[name], dtype=float) for name in ("example_norm_sum", "gradient_norm"))
    examples, gradient = map(np.ma.masked_invalid, columns)
    return examples / gradient
