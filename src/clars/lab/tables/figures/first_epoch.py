"""The training loss within the first epoch, where warmup acts."""

import statistics
from pathlib import Path

from clars.lab.runs import Run
from clars.lab.tables.definition import ResolvedTable, TableRow
from clars.lab.tables.figures.panels import axes_of, finish, lines, of_method
from clars.lab.tables.figures.style import canvas, not_run
from clars.lab.tables.summary import counted

Curve = tuple[list[float], list[list[float]]]  # the share of the epoch where each part ends, and the losses of each run


def figure(table: ResolvedTable, out: Path, path: Path) -> None:
    """Draw the training loss over the first epoch, of the tuned rows at each network's largest batch."""
    found = panels(table, out)
    with canvas(path, 10.5, 1.6 + 4.2 * lines(len(found))) as picture:
        if not found:
            not_run(picture)
        for number, ((network, batch), curves) in enumerate(found.items()):
            title = f"{network}, batch {batch:,}, tuned rates"
            axes = axes_of(picture, len(found), number, title, "part of the first epoch")
            axes.set(yscale="log", ylabel="training loss")
            axes.yaxis.set_major_formatter(_plain)
            axes.yaxis.set_minor_formatter(_plain)
            for method, (places, losses) in curves.items():
                label = table.tier.product.methods[method].label
                means = [statistics.fmean(part) for part in zip(*losses)]
                axes.plot(places, means, label=label, markersize=4, **of_method(table, method))
        finish(
            picture, table, "mean of the seeds; dashed: with warmup; runs that diverged within the epoch are left out"
        )


def panels(table: ResolvedTable, out: Path) -> dict[tuple[str, int], dict[str, Curve]]:
    """Return the curves of tuned rows by network and largest batch, then by method; of runs that have them."""
    found: dict[tuple[str, int], dict[str, Curve]] = {}
    for row in table.rows:
        if row.plan.tuned and (curve := _curve(counted(row, out))):
            found.setdefault(_place(row), {})[row.plan.method] = curve
    largest = {network: max(batch for other, batch in found if other == network) for network, _ in found}
    return {place: curves for place, curves in found.items() if place[1] == largest[place[0]]}


def _curve(runs: list[Run]) -> Curve | None:
    lines_of_runs = [run.metrics[0] for run in runs if run.metrics and run.metrics[0].get("first_epoch_losses")]
    if not lines_of_runs:
        return None
    steps, losses = lines_of_runs[0]["step"], [line["first_epoch_losses"] for line in lines_of_runs]
    parts = len(losses[0])
    return [(part * steps // parts) / steps for part in range(1, parts + 1)], losses


def _place(row: TableRow) -> tuple[str, int]:
    return row.plan.network or row.plan.recipe, row.resolved.recipe.batch_size


def _plain(value: float, _: int) -> str:
    return f"{value:g}"
