"""Panels beside each other with one legend for all of them: what they show, and drawing it."""

import math
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec

from clars.lab.runs import Run
from clars.lab.tables.definition import ResolvedTable
from clars.lab.tables.figures.style import WIDTH, canvas
from clars.lab.tables.search import LEARNT
from clars.lab.tables.verdict import mean_accuracy

Place = tuple[str | None, int]  # network and batch
_LETTER, _LINE = 0.07, 0.19  # inches of the legend's text: a letter's width, and a line's height


@dataclass(frozen=True)
class Curve:
    """A line: its points, nan where a value is not known; a band or error bars; and crosses, where runs diverged."""

    label: str
    look: Mapping[str, object]
    x: Sequence[float]
    y: Sequence[float]
    band: tuple[Sequence[float], Sequence[float]] | None = None
    errors: Sequence[float] | None = None
    ends: Sequence[tuple[float, float]] = ()

    @property
    def points(self) -> int:
        """How many points are known."""
        return sum(map(math.isfinite, self.y))

    def draw(self, axes: Axes) -> None:
        """Draw the line, with about ten markers."""
        look = {"markersize": 4.5, "markevery": max(1, len(self.x) // 10), **self.look}
        if self.errors is None:
            axes.plot(self.x, self.y, label=self.label, **look)
        else:
            axes.errorbar(self.x, self.y, self.errors, label=self.label, capsize=3, **look)
        if self.band:
            axes.fill_between(self.x, *self.band, color=look["color"], alpha=0.13, linewidth=0)
        for end in self.ends:
            axes.plot(*end, "x", color=look["color"], markersize=8, markeredgewidth=2)


class Drawable(Protocol):
    """A part of a figure: `place` is what it is of, and `best` the highest mean accuracy in it, where it is of one."""

    title: str
    place: Place | None
    best: float | None
    height: float

    @property
    def points(self) -> int:
        """How many points its longest line has."""

    def draw(self, picture: Figure, place: SubplotSpec) -> None:
        """Draw it into its place in a picture."""


@dataclass(frozen=True)
class Panel:
    """Curves in one pair of axes, which `frame` labels and limits at the end; `references` say nothing alone."""

    title: str
    curves: Sequence[Curve]
    frame: Callable[[Axes], None]
    references: Sequence[Curve] = ()
    place: Place | None = None
    best: float | None = None
    height: float = 3.0

    @property
    def points(self) -> int:
        """How many points the longest curve has."""
        return max((curve.points for curve in self.curves), default=0)

    def draw(self, picture: Figure, place: SubplotSpec) -> None:
        """Draw the curves that have points."""
        axes = picture.add_subplot(place)
        axes.set_title(self.title)
        for curve in (*self.curves, *self.references):
            if curve.points:
                curve.draw(axes)
        self.frame(axes)


@dataclass(frozen=True)
class Sketch:
    """What a figure has to show, before it is known whether all of that says something.

    `lacking` says what there is none of where there are no panels.
    """

    panels: Sequence[Drawable]
    caption: str
    lacking: str = "nothing was run"
    columns: int = 2


def paint(path: Path, panels: Sequence[Drawable], sketch: Sketch, heading: str = "") -> None:
    """Draw panels, of which there is at least one, in the columns of their sketch, into the picture `path`."""
    columns = min(sketch.columns, len(panels))
    lines = [panels[start : start + columns] for start in range(0, len(panels), columns)]
    heights = [max(panel.height for panel in line) for line in lines]
    with canvas(path, sum(heights)) as picture:
        grid = picture.add_gridspec(len(lines), columns, height_ratios=heights)
        for number, panel in enumerate(panels):
            panel.draw(picture, grid[divmod(number, columns)])
        below = _legend(picture, "; ".join([sketch.caption, *_marks(panels)]))
        title = textwrap.fill(heading, 72)
        if title:
            picture.suptitle(title, x=0.01, ha="left", weight="bold")
        picture.set_size_inches(WIDTH, sum(heights) + 0.25 * len(title.splitlines()) + below)


def _marks(panels: Sequence[Drawable]) -> Iterator[str]:
    """Yield what marks of the curves mean, of those that are there."""
    curves = [curve for panel in panels if isinstance(panel, Panel) for curve in panel.curves]
    if any(curve.look.get("linestyle") == "--" for curve in curves):
        yield "dashed: with warmup"
    if any(curve.ends for curve in curves):
        yield "a cross: a run that diverged"


def _legend(picture: Figure, caption: str) -> float:
    """Put one legend below all panels, with what they show; return the inches that it takes."""
    named = {}
    for axes in picture.axes:
        for handle, label in zip(*axes.get_legend_handles_labels()):
            named.setdefault(label, handle)
    title = textwrap.fill(caption, 105)
    columns = int((WIDTH - 0.2) / (_LETTER * max(map(len, named), default=0) + 0.6))
    columns = max(1, min(4, columns))
    where = {"loc": "outside lower left", "ncols": columns, "alignment": "left", "fontsize": 9, "title_fontsize": 9}
    picture.legend(named.values(), named, title=title, columnspacing=1.5, **where)
    return 0.2 + _LINE * (math.ceil(len(named) / columns) + len(title.splitlines()))


def guesses(accuracy: float, chance: float | None) -> bool:
    """Tell whether a mean accuracy is about that of guessing, where that is known."""
    return chance is not None and accuracy <= LEARNT * chance


def best_of(rows: Iterable[Sequence[Run]], table: ResolvedTable) -> float:
    """Return the highest mean accuracy of several rows, each with its runs."""
    return max(mean_accuracy(runs, table.head.chance) for runs in rows)


def title_of(place: Place, *more: str) -> str:
    """Return the title of a panel: network, batch, and what else there is to say."""
    network, batch = place
    return ", ".join(filter(None, (network, f"batch {batch:,}", *more)))


def at_largest(found: dict[Place, dict]) -> dict[Place, dict]:
    """Return what there is of each network's largest batch."""
    largest = {network: max(batch for other, batch in found if other == network) for network, _ in found}
    return {place: content for place, content in found.items() if place[1] == largest[place[0]]}
