"""What becomes of accuracy, and of the number of steps, as the batch grows: a panel for each network."""

import statistics
from collections.abc import Callable, Iterable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from clars.lab.tables.definition import ResolvedTable
from clars.lab.tables.figures.style import canvas, heading, look, not_run
from clars.lab.tables.scaling import Line, lines, steps_to
from clars.lab.tables.summary import interval
from clars.lab.tables.verdict import accuracy

_COLUMNS = 2
_LINES = {"scaled": "-", "linear": "-", "sqrt": ":", "tuned": "--"}


def accuracy_by_batch(table: ResolvedTable, out: Path, path: Path) -> None:
    """Draw the mean final accuracy with its 95 % interval, diverged runs at the accuracy they ended with."""

    def draw(axes: Axes, line: Line, look: dict) -> None:
        values = [[accuracy(run, table.head.chance) for run in runs] for _, runs in line.points]
        errors = [interval(accuracies) or 0.0 for accuracies in values]
        batches = [batch for batch, _ in line.points]
        axes.errorbar(batches, [statistics.fmean(each) for each in values], errors, capsize=3, **look)

    found = lines(table, out)
    with canvas(path, *_size(found)) as picture:
        panels = _panels(picture, table, found, draw)
        for axes in panels.values():
            axes.set_ylabel("top-1, %")
            low, high = axes.get_ylim()
            axes.set_ylim(max(low, -2), min(high, 102))  # an interval may reach past what an accuracy can be
        dashed = "; dashed: rate tuned at each batch" if any(line.rates == "tuned" for line in found) else ""
        dashed += "; dotted: scaled by the root of the batch" if any(line.rates == "sqrt" for line in found) else ""
        _legend(picture, panels.values(), f"mean and 95 % interval{dashed}")


def steps_to_target(table: ResolvedTable, out: Path, path: Path) -> None:
    """Draw the mean number of steps to the target accuracy where every run reaches it, beside perfect scaling.

    The straight line begins at the fewest steps of any method at the smallest batch: twice the batch, half the steps.
    """
    targets = table.head.targets
    found = [line for line in lines(table, out) if line.network in targets]
    all_reached: dict[str, list[tuple[int, float]]] = {line.network: [] for line in found}

    def draw(axes: Axes, line: Line, look: dict) -> None:
        points = [(batch, [steps_to(run, targets[line.network]) for run in runs]) for batch, runs in line.points]
        reached = [(batch, statistics.fmean(steps)) for batch, steps in points if None not in steps]
        axes.plot([batch for batch, _ in reached], [steps for _, steps in reached], **look)
        all_reached[line.network] += reached

    with canvas(path, *_size(found)) as picture:
        panels = _panels(picture, table, found, draw)
        for network, axes in panels.items():
            axes.set(yscale="log", ylabel=f"steps to {targets[network]:g} %")
            if reached := all_reached[network]:
                (batch, steps), last = min(reached), max(batch for batch, _ in reached)
                axes.plot([batch, last], [steps, steps * batch / last], ":", color="#888888", label="perfect scaling")
        _legend(picture, panels.values(), "mean over the seeds, where all of them reach the target; dashed: tuned")


def _panels(
    picture: Figure, table: ResolvedTable, found: list[Line], draw: Callable[[Axes, Line, dict], None]
) -> dict[str, Axes]:
    """Draw each line in the panel of its network; the same method looks the same in all of them."""
    networks = list(dict.fromkeys(line.network for line in found))
    if not found:
        not_run(picture)
    columns = min(_COLUMNS, len(networks))
    depth = -(-len(networks) // max(columns, 1))
    panels = {name: picture.add_subplot(depth, columns, number + 1) for number, name in enumerate(networks)}
    labels = list(dict.fromkeys(row.plan.method for row in table.rows))
    methods = {row.label: labels.index(row.plan.method) for row in table.rows}
    for name, axes in panels.items():
        axes.set_xscale("log", base=2)
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("batch")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    for line in found:
        style = look(methods[line.label]) | {"linestyle": _LINES[line.rates], "label": line.label, "markersize": 5}
        filling = {} if _LINES[line.rates] == "-" else {"markerfacecolor": "white"}
        draw(panels[line.network], line, style | filling)
    picture.suptitle(heading(table, 68 if columns > 1 else 52), x=0.01, ha="left", weight="bold")
    return panels


def _legend(picture: Figure, panels: Iterable[Axes], title: str) -> None:
    named = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels()):
            named.setdefault(label, handle)
    if named:
        picture.legend(
            named.values(), named, loc="outside lower left", ncols=3, title=title, alignment="left", fontsize=9
        )


def _size(found: list[Line]) -> tuple[float, float]:
    panels = len({line.network for line in found})
    return (9.0 if panels > 1 else 6.5), 1.8 + 2.9 * max(1, -(-panels // _COLUMNS))
