"""The training loss within the first epoch, where warmup acts."""

import statistics
from pathlib import Path

from matplotlib.axes import Axes

from clars.lab.runs import Run
from clars.lab.tables.definition import ResolvedTable
from clars.lab.tables.figures.looks import label, looks
from clars.lab.tables.figures.panels import Curve, Panel, Place, Sketch, at_largest, best_of, title_of
from clars.lab.tables.figures.style import logarithmic
from clars.lab.tables.summary import by_row

CAPTION = "mean of the seeds; runs that diverged within the epoch are left out"


def figure(table: ResolvedTable, out: Path) -> Sketch:
    """Show the training loss over the first epoch, of the tuned rows at each network's largest batch."""
    look, runs = looks(table), by_row(table, out)
    found: dict[Place, dict[str, Curve]] = {}
    for row in table.rows:
        if row.plan.tuned and (measured := _measured(runs[row.name])):
            curve = Curve(label(table, row), look[row.plan.method], *_means(measured))
            place = (row.plan.network, row.resolved.recipe.batch_size)
            found.setdefault(place, {})[row.name] = curve
    panels = []
    for place, curves in at_largest(found).items():
        best = best_of([runs[name] for name in curves], table)
        panels.append(Panel(title_of(place, "tuned rates"), [*curves.values()], _frame, place=place, best=best))
    return Sketch(panels, CAPTION, "no record has the losses within the first epoch")


def _measured(runs: list[Run]) -> list[dict]:
    """Return the lines of the first epoch that have its losses."""
    return [run.metrics[0] for run in runs if run.metrics and run.metrics[0].get("first_epoch_losses")]


def _means(measured: list[dict]) -> tuple[list[float], list[float]]:
    """Return the share of the epoch at which each part of it ends, and the mean loss of that part."""
    means = [statistics.fmean(part) for part in zip(*(line["first_epoch_losses"] for line in measured))]
    steps, parts = measured[0]["step"], len(means)
    return [(part * steps // parts) / steps for part in range(1, parts + 1)], means


def _frame(axes: Axes) -> None:
    axes.set(yscale="log", xlabel="part of the first epoch", ylabel="training loss")
    logarithmic(axes.yaxis)
