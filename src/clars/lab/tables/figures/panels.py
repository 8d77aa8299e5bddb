"""Panels beside each other, with one legend for all of them, and one look for each method."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from clars.lab.tables.definition import ResolvedTable
from clars.lab.tables.figures.style import heading, look

_COLUMNS = 2


def lines(panels: int) -> int:
    """Return how many lines so many panels take, at least one."""
    return max(1, -(-panels // _COLUMNS))


def axes_of(picture: Figure, panels: int, number: int, title: str, across: str) -> Axes:
    """Return the axes of a panel, counted from 0, with its title and what goes across."""
    axes = picture.add_subplot(lines(panels), min(_COLUMNS, panels), number + 1)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(across)
    return axes


def of_method(table: ResolvedTable, method: str) -> dict[str, object]:
    """Return how the curve of a product's method looks: with warmup dashed, in the colour of the method without."""
    methods = table.tier.product.methods
    plain = [name for name, each in methods.items() if each.warmup_of is None]
    without = methods[method].warmup_of
    style = look(plain.index(without or method)) | {"linestyle": "--" if without else "-"}
    return style | ({"markerfacecolor": "white"} if without else {})


def finish(picture: Figure, table: ResolvedTable, title: str) -> None:
    """Put the one legend below the panels, with what its curves are, and the heading above them."""
    named = {}
    for axes in picture.axes:
        for handle, label in zip(*axes.get_legend_handles_labels()):
            named.setdefault(label, handle)
    if named:
        where = {"loc": "outside lower left", "ncols": 3, "alignment": "left", "fontsize": 9}
        picture.legend(named.values(), named, title=title, **where)
    picture.suptitle(heading(table, 80), x=0.01, ha="left", weight="bold")
