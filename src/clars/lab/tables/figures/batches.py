"""What becomes of accuracy, and of the number of steps, as the batch grows: a panel for each network."""

import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes

from clars.lab.tables.definition import ResolvedTable
from clars.lab.tables.figures.looks import ORIGINS, looks
from clars.lab.tables.figures.panels import Curve, Panel, Sketch
from clars.lab.tables.figures.style import GREY, logarithmic
from clars.lab.tables.scaling import Line, lines, steps_to
from clars.lab.tables.summary import interval
from clars.lab.tables.verdict import accuracy, mean_accuracy

Group = tuple[str, str]  # network, and where its rates come from


def accuracy_by_batch(table: ResolvedTable, out: Path) -> Sketch:
    """Show the mean final accuracy with its 95 % interval; runs that diverged as `accuracy` has them."""
    look, chance = looks(table), table.head.chance

    def errors(line: Line) -> list[float]:
        found = (interval([accuracy(run, chance) for run in runs]) for _, runs in line.points)
        return [math.nan if each is None else each for each in found]

    def curve(line: Line) -> Curve:
        means = [mean_accuracy(runs, chance) for _, runs in line.points]
        batches = [batch for batch, _ in line.points]
        return Curve(_label(table, line), look[line.method], batches, means, errors=errors(line))

    groups = {group: [curve(line) for line in own] for group, own in _groups(table, out).items()}
    panels = []
    for group, curves in groups.items():
        network = [each for other, own in groups.items() if other[0] == group[0] for each in own]
        frame = _frame("top-1, %", curves, ylim=_limits(network))
        best = max(mean for each in curves for mean in each.y)
        panels.append(Panel(_title(group, groups), curves, frame, best=best))
    return Sketch(panels, "mean and 95 % interval")


def steps_to_target(table: ResolvedTable, out: Path) -> Sketch:
    """Show the mean number of steps to the target accuracy where every run reaches it, beside perfect scaling."""
    look, targets = looks(table), table.head.targets
    groups = {group: own for group, own in _groups(table, out).items() if group[0] in targets}
    panels = []
    for group, own in groups.items():
        target = targets[group[0]]
        curves = [Curve(_label(table, line), look[line.method], *_steps(line, target)) for line in own]
        frame = _frame(f"steps to {target:g} %", curves, yscale="log")
        panels.append(Panel(_title(group, groups), curves, frame, references=_perfect(curves)))
    caption = "mean of the seeds, where all of them reach the target"
    return Sketch(panels, caption, "no network that was run has a target")


def _groups(table: ResolvedTable, out: Path) -> dict[Group, list[Line]]:
    """Return the lines by network and origin of their rates, in which each method has one."""
    found: dict[Group, list[Line]] = {}
    for line in lines(table, out):
        found.setdefault((line.network, line.rates), []).append(line)
    return found


def _label(table: ResolvedTable, line: Line) -> str:
    return table.tier.product.methods[line.method].label


def _steps(line: Line, target: float) -> tuple[list[float], list[float]]:
    """Return the batches at which every run reaches the target, and the mean of the steps to it."""
    points = [(batch, [steps_to(run, target) for run in runs]) for batch, runs in line.points]
    reached = {batch: statistics.fmean(steps) for batch, steps in points if None not in steps}
    return [*reached], [*reached.values()]


def _perfect(curves: Sequence[Curve]) -> list[Curve]:
    """Return the straight line from the fewest steps at the smallest batch: twice the batch, half the steps."""
    reached = [point for curve in curves for point in zip(curve.x, curve.y)]
    if not reached:
        return []
    (batch, steps), last = min(reached), max(batch for batch, _ in reached)
    look = {"color": GREY, "linestyle": ":", "zorder": 1.9}
    return [Curve("perfect scaling", look, [batch, last], [steps, steps * batch / last])]


def _frame(ylabel: str, curves: Sequence[Curve], **settings: object) -> Callable[[Axes], None]:
    batches = sorted({batch for curve in curves for batch in curve.x})

    def frame(axes: Axes) -> None:
        axes.set_xscale("log", base=2)
        axes.set_xticks(batches, [f"{batch:,}" for batch in batches])
        axes.set(xlabel="batch", ylabel=ylabel, **settings)
        if "yscale" in settings:
            logarithmic(axes.yaxis)

    return frame


def _limits(curves: Sequence[Curve]) -> tuple[float, float]:
    """Return limits for the panels of one network: an interval may reach beyond what an accuracy can be."""
    errors = [0.0 if math.isnan(error) else error for curve in curves for error in curve.errors]
    means = [mean for curve in curves for mean in curve.y]
    low = min(mean - error for mean, error in zip(means, errors))
    high = max(mean + error for mean, error in zip(means, errors))
    margin = 0.04 * (high - low) + 0.5
    return max(-2, low - margin), min(102, high + margin)


def _title(group: Group, groups: dict[Group, object]) -> str:
    return f"{group[0]}, {ORIGINS[group[1]]}" if len({origin for _, origin in groups}) > 1 else group[0]
