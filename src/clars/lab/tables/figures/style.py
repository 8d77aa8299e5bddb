"""How figures look: colours, markers, and a canvas that is written whole or not at all."""

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

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
REFERENCES = ("#222222", "#777777", "#b0b0b0")
STYLE = {
    "font.size": 10,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}


@contextmanager
def canvas(path: Path, width: float, height: float) -> Iterator[Figure]:
    """Yield a figure of so many inches; it becomes the picture `path` at the end."""
    with matplotlib.rc_context(STYLE), replacing(path) as temporary:
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        figure.savefig(temporary, dpi=150)


def look(number: int) -> dict[str, object]:
    """Return colour and marker of the method of a number; no two of the first 64 look the same."""
    rounds, place = divmod(number, len(PALETTE))
    return {"color": PALETTE[place], "marker": MARKERS[(place + rounds) % len(MARKERS)]}


def heading(table: ResolvedTable, width: int = 68) -> str:
    """Return the title; it says where the runs are no result."""
    return textwrap.fill(table.head.title + ("" if table.tier.result else " (no result)"), width)


def not_run(figure: Figure) -> None:
    """Say on an empty figure that there is nothing to show."""
    figure.text(0.5, 0.5, "not run", ha="center", color="#888888", fontsize=16)
