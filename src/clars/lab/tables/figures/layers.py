"""Layers over a run: variance factor, noise scale, and how much faster LARS would move, as heat maps and curves."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from matplotlib.lines import Line2D

from clars.lab.runs import Run, layers
from clars.lab.runs.layers import LayerHistory
from clars.lab.tables.definition import ResolvedTable
from clars.lab.tables.figures.depth import BESIDE, LACKING, by_depth, named
from clars.lab.tables.figures.panels import Place, Sketch, title_of
from clars.lab.tables.figures.style import GREY, logarithmic
from clars.lab.tables.summary import by_row

_MEASURES = ("variance factor", "noise scale, examples", "rate of LARS / CLARS")
_PARTS = 60  # of a run, in curves
CAPTION = (
    "variance factor: mean square of example norms / ||g||²; noise scale: trace of covariance / ||true gradient||²;"
    " rate of LARS / CLARS: (S + λ||w||) / (||g|| + λ||w||). Maps: every step that was measured, grey where it is"
    f" infinite or not known. Curves: first, middle and last layer, geometric means over 1/{_PARTS} of the run, with"
    " gaps where less than half is known"
)


def figure(table: ResolvedTable, out: Path) -> Sketch:
    """Show the first run, by seed, of each row that has per-example norms: the three measures, maps above curves."""
    runs, panels = by_row(table, out), []
    for row in table.rows:
        run, history = _first(runs[row.name])
        if history:
            place = (row.plan.network, row.resolved.recipe.batch_size)
            title = title_of(place, row.label, f"seed {run.record.seed}")
            panels.append(Maps(title, history, run.record.optimizer["weight_decay"], place))
    return Sketch(panels, CAPTION, LACKING, columns=1)


@dataclass(frozen=True)
class Maps:
    """The three measures of one run."""

    title: str
    history: LayerHistory
    weight_decay: float
    place: Place
    best: float | None = None

    @property
    def points(self) -> int:
        """How many steps were measured."""
        return len(self.history.steps)

    @property
    def height(self) -> float:
        """The inches of maps in which each layer has a line, within bounds, and of the curves below."""
        return self._depth + 2.1

    @property
    def _depth(self) -> float:
        return min(5.0, max(1.3, 0.4 + 0.12 * len(self.history.layers)))

    def draw(self, picture: Figure, place: SubplotSpec) -> None:
        """Draw them into their place in a picture."""
        history, grid = self.history, place.subgridspec(2, len(_MEASURES), height_ratios=(self._depth, 1.3))
        ratio = history.rate_ratio(self.weight_decay)
        for index, values in enumerate([history.columns["variance_factor"], history.columns["noise_scale"], ratio]):
            array = np.array(values, dtype=float).T  # [layers, steps]; None becomes nan
            below = picture.add_subplot(grid[1, index])
            above = picture.add_subplot(grid[0, index], sharex=below)
            above.set_title(_MEASURES[index] if index else f"{self.title}\n\n{_MEASURES[index]}")
            _map(above, np.where(array > 0, array, np.nan), history.steps)
            named(above.yaxis, history.layers if index == 0 else [""], self._depth - 0.4, first=0.5)
            chosen = _curves(below, array, history)
            if index == 0:
                below.legend(*chosen, fontsize=7, loc="upper right", bbox_to_anchor=(-0.3, 1.05))


def _first(runs: list[Run]) -> tuple[Run, LayerHistory] | tuple[None, None]:
    found = ((run, layers.read(run)) for run in runs)
    return next(((run, history) for run, history in found if history), (None, None))


def _map(axes: Axes, positive: np.ndarray, steps: list[int]) -> None:
    axes.grid(False)
    axes.set_facecolor("#dddddd")
    axes.tick_params(labelbottom=False)
    known = positive[np.isfinite(positive)]
    if not known.size:
        axes.text(0.5, 0.5, "infinite, or not known", transform=axes.transAxes, ha="center", color=GREY)
        return
    low, high = np.percentile(known, [1, 99])
    edges = np.concatenate([[steps[0] - (steps[1] - steps[0] if len(steps) > 1 else 1)], steps])
    norm = LogNorm(low, max(high, low * 1.01))
    mesh = axes.pcolormesh(edges, np.arange(len(positive) + 1), positive, norm=norm, cmap="viridis", rasterized=True)
    axes.invert_yaxis()  # the input above, the classifier below
    bar = axes.figure.colorbar(mesh, cax=axes.inset_axes(BESIDE))
    logarithmic(bar.ax.yaxis)
    bar.ax.tick_params(labelsize=7)


def _curves(axes: Axes, array: np.ndarray, history: LayerHistory) -> tuple[list[Line2D], list[str]]:
    """Draw the first, the middle and the last layer, in the colours of their depths; return the lines and names."""
    count = len(history.steps)
    parts = [slice(start, start + -(-count // _PARTS)) for start in range(0, count, -(-count // _PARTS))]
    steps = [history.steps[part][-1] for part in parts]
    chosen, colors = [*dict.fromkeys((0, len(array) // 2, len(array) - 1))], by_depth(len(array))
    drawn = []
    for index in chosen:
        look = {"color": colors[index], "marker": ".", "linewidth": 1, "markersize": 2}
        drawn += axes.plot(steps, [_mean(array[index, part]) for part in parts], **look)
    axes.set(yscale="log", xlabel="step")
    logarithmic(axes.yaxis)
    axes.tick_params(labelsize=7)
    return drawn, [history.layers[index] for index in chosen]


def _mean(part: np.ndarray) -> float:
    """Return the geometric mean of what is known; nan where that is less than half."""
    known = part[np.isfinite(part) & (part > 0)]
    return float(np.exp(np.log(known).mean())) if 2 * known.size >= part.size else float("nan")
