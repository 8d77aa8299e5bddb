"""Layers over a run: variance factor, noise scale, and how much faster LARS would move, as heat maps and curves."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from clars.lab.runs import layers
from clars.lab.runs.layers import LayerHistory
from clars.lab.tables.definition import ResolvedTable
from clars.lab.tables.figures.style import MARKERS, PALETTE, canvas, heading, not_run
from clars.lab.tables.summary import counted

_NAMES = 24  # more layers than this are counted on the axis instead of named
_MEASURES = (
    ("variance factor", "mean square of example norms / ||g||²"),
    ("noise scale, examples", "trace of covariance / ||true gradient||²"),
    ("rate of LARS / CLARS", "(S + λ||w||) / (||g|| + λ||w||)"),
)


def figure(table: ResolvedTable, out: Path, path: Path) -> None:
    """Draw the first run, by seed, of each row that has per-example norms: the three measures, maps above curves."""
    found = []
    for row in table.rows:
        histories = ((run, layers.read(run)) for run in counted(row, out))
        first = next(((run, history) for run, history in histories if history), None)
        if first:
            run, history = first
            name = f"{row.plan.network}, " if row.plan.network else ""
            title = f"{name}{row.label}, batch {row.resolved.recipe.batch_size}, seed {run.record.seed}"
            found.append((title, history, run.record.optimizer["weight_decay"]))
    with canvas(path, 13, 1 + 6.4 * max(1, len(found))) as picture:
        if not found:
            not_run(picture)
            return
        picture.suptitle(heading(table, 110), x=0.01, ha="left", weight="bold")
        for part, (title, history, weight_decay) in zip(np.atleast_1d(picture.subfigures(len(found))), found):
            part.suptitle(title, x=0.01, ha="left", fontsize=11)
            _row(part, history, weight_decay)


def _row(part: Figure, history: LayerHistory, weight_decay: float) -> None:
    above, below = part.subplots(2, len(_MEASURES), height_ratios=(3, 2))
    measures = [history.columns["variance_factor"], history.columns["noise_scale"], history.rate_ratio(weight_decay)]
    for index, values in enumerate(measures):
        array = np.array(values, dtype=float).T  # [layers, steps]; None becomes nan
        title, formula = _MEASURES[index]
        _map(part, above[index], array, history, index == 0)
        above[index].set_title(f"{title}: {formula}", fontsize=9, weight="normal")
        _curves(below[index], array, history, title)
    below[0].legend(fontsize=8)


def _map(part: Figure, axes: Axes, array: np.ndarray, history: LayerHistory, named: bool) -> None:
    positive = np.where(array > 0, array, np.nan)
    if np.isnan(positive).all():
        return
    low, high = np.nanpercentile(positive, [1, 99])
    steps = history.steps
    edges = np.concatenate([[steps[0] - (steps[1] - steps[0] if len(steps) > 1 else 1)], steps])
    norm = LogNorm(low, max(high, low * 1.01))
    mesh = axes.pcolormesh(edges, np.arange(len(array) + 1), positive, norm=norm, cmap="viridis")
    axes.grid(False)
    axes.invert_yaxis()  # the input above, the classifier below
    axes.set_facecolor("#dddddd")  # not measured, or infinite
    if named and len(array) <= _NAMES:
        axes.set_yticks(np.arange(len(array)) + 0.5, history.layers, fontsize=7)
    elif len(array) <= _NAMES:
        axes.set_yticks([])
    else:
        axes.set_ylabel("layer, from the input" if named else "")
    part.colorbar(mesh, ax=axes, pad=0.01)


def _curves(axes: Axes, array: np.ndarray, history: LayerHistory, title: str) -> None:
    """Draw the first, the middle and the last layer."""
    chosen = dict.fromkeys((0, len(array) // 2, len(array) - 1))
    for number, index in enumerate(chosen):
        every = max(1, len(history.steps) // 8)
        look = {"color": PALETTE[number], "marker": MARKERS[number], "markevery": every, "markersize": 4}
        axes.plot(history.steps, array[index], label=history.layers[index], **look)
    axes.set(yscale="log", xlabel="step", ylabel=title)
