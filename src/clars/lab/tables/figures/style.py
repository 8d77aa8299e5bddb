"""How figures look: colours, markers, axes, and a canvas that is written whole or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from clars.lab.files import replacing
from clars.lab.tables.definition import ResolvedTable

# Okabe and Ito's colours, which people with any common kind of colour vision can tell apart; yellow is too faint, and
# has a brown in its place.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C564B")
MARKERS = (
    "o",
    "s",
    "^",
    "D",
    "v",
    "P",
    "X",
    "*",
)  # as many, so that a colour is never needed to tell two methods apart
GREY = "#888888"
WIDTH = 8.0  # inches; at 150 dots an inch these are 1,200 pixels, about what a page shows
STYLE = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "clars",  # else names within the file are drawn by lot
}
_UNDATED = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}  # the same runs make the same file


@contextmanager
def canvas(path: Path, height: float) -> Iterator[Figure]:
    """Yield a figure so many inches high; it becomes the picture `path` at the end, of the kind of its ending."""
    with matplotlib.rc_context(STYLE), replacing(path) as temporary:
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        yield figure
        figure.savefig(temporary, dpi=150, metadata=_UNDATED.get(path.suffix.lower()))


def look(number: int) -> dict[str, object]:
    """Return colour and marker of the method of a number; no two of the first 64 look the same."""
    rounds, place = divmod(number, len(PALETTE))
    return {"color": PALETTE[place], "marker": MARKERS[(place + rounds) % len(MARKERS)]}


def logarithmic(axis: Axis) -> None:
    """Give a logarithmic axis, once all is drawn, numbers as they are read, as many as its range has a place for."""
    low, high = sorted(axis.get_view_interval())
    of_a_decade = {2000: (1,), 20: (1, 2, 5), 3: (1, 2, 3, 5, 7), 0: range(1, 10)}
    chosen = next(each for factor, each in of_a_decade.items() if high > factor * low)
    axis.set_major_locator(LogLocator(subs=chosen))
    axis.set_major_formatter(plain)
    axis.set_minor_formatter(NullFormatter())


def plain(value: float, _: int = 0) -> str:
    """Return a number without an exponent as far as that can be read."""
    return f"{value:,.0f}" if 1 <= value < 1e6 and value == round(value) else f"{value:g}"


def heading(table: ResolvedTable) -> str:
    """Return the title; it says where the runs are no result."""
    return table.head.title + ("" if table.tier.result else " (no result)")
