"""Layers by their depth: a colour each, and their own names beside it."""

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, ListedColormap

LACKING = "no run has statistics of its layers"
BESIDE = (1.03, 0, 0.06, 1)  # of the axes: where the bar of a map's colours stands
_LETTERS = 0.105  # inches between two names, one below the other


def by_depth(count: int) -> list[tuple[float, ...]]:
    """Return the colours of so many layers, from the first, dark, to the last."""
    return [colormaps["viridis"](0.9 * index / max(1, count - 1)) for index in range(count)]


def name_depths(axes: Axes, names: list[str], inches: float) -> None:
    """Put a bar of the layers' colours beside axes so many inches high, the first above, with the layers' names."""
    edges = [index - 0.5 for index in range(len(names) + 1)]
    norm = BoundaryNorm(edges, len(names))
    colors = ListedColormap(by_depth(len(names)))
    bar = axes.figure.colorbar(ScalarMappable(norm, colors), cax=axes.inset_axes((1.01, 0, 0.015, 1)))
    bar.ax.invert_yaxis()
    bar.outline.set_visible(False)
    named(bar.ax.yaxis, names, inches)


def named(axis: Axis, names: list[str], inches: float, first: float = 0.0) -> None:
    """Name the layers along so many inches of an axis: every one, or every second, third, ..."""
    every = max(1, -(-len(names) // max(1, int(inches / _LETTERS))))
    axis.set_ticks([first + index for index in range(0, len(names), every)], names[::every], fontsize=7)
    axis.set_tick_params(length=0, which="both")
