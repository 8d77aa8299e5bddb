"""How far the gradients of examples cancel: S / ||g|| of every layer over the first steps, beside the batch's root."""

import math
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes

from clars.lab.runs import layers
from clars.lab.runs.layers import LayerHistory
from clars.lab.tables.definition import ResolvedTable, TableRow
from clars.lab.tables.figures.style import canvas, heading, not_run
from clars.lab.tables.summary import counted

_STEPS = 100
_COLUMNS = 2


def figure(table: ResolvedTable, out: Path, path: Path) -> None:
    """Draw each row that has per-example norms: a curve for each layer, the geometric mean of its runs.

    Colours go by depth, from the first layer, dark, to the last, which alone are named.
    """
    found = [(row, histories) for row in table.rows if (histories := _histories(row, out))]
    lines = max(1, -(-len(found) // _COLUMNS))
    with canvas(path, 10.5, 1.4 + 3.8 * lines) as picture:
        if not found:
            not_run(picture)
            return
        for number, (row, histories) in enumerate(found):
            axes = picture.add_subplot(lines, min(_COLUMNS, len(found)), number + 1)
            _panel(axes, histories, row.resolved.recipe.batch_size)
            network = f"{row.plan.network}, " if row.plan.network else ""
            axes.set_title(f"{network}{row.label}, batch {row.resolved.recipe.batch_size:,}", fontsize=10)
        caption = f"mean norm of the examples' gradients over the norm of their mean, first {_STEPS} steps"
        picture.suptitle(f"{heading(table, 80)}\n{caption}", x=0.01, ha="left", weight="bold")


def _histories(row: TableRow, out: Path) -> list[LayerHistory]:
    return [history for history in map(layers.read, counted(row, out)) if history]


def _panel(axes: Axes, histories: list[LayerHistory], batch: int) -> None:
    steps, names = histories[0].steps, histories[0].layers
    until = min(sum(step <= _STEPS for step in steps), *(len(history.steps) for history in histories))
    ratios = np.ma.stack([_ratio(history)[:until] for history in histories])  # [runs, steps, layers]
    means = np.ma.exp(np.ma.log(ratios).mean(axis=0))
    for index, name in enumerate(names):
        color = colormaps["viridis"](0.9 * index / max(1, len(names) - 1))
        named = name if index in (0, len(names) - 1) else "_nolegend_"
        axes.plot(steps[:until], means[:, index], color=color, linewidth=1.2, label=named)
    axes.plot(steps[:until], np.ma.median(means, axis=1), color="black", linewidth=2.4, label="median of the layers")
    axes.axhline(math.sqrt(batch), color="#777777", linestyle="--", label="root of the batch")
    axes.set(yscale="log", xlabel="step", ylabel="S / ||g||")
    axes.yaxis.set_major_formatter(_plain)
    axes.yaxis.set_minor_formatter(_plain)
    axes.legend(fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.16))


def _plain(value: float, _: int) -> str:
    return f"{value:g}"


def _ratio(history: LayerHistory) -> np.ma.MaskedArray:
    """Return S / ||g|| [steps, layers], masked where it was not measured or the mean gradient is zero."""
    columns = (np.array(history.columns[name], dtype=float) for name in ("example_norm_sum", "gradient_norm"))
    examples, gradient = map(np.ma.masked_invalid, columns)
    return examples / gradient
