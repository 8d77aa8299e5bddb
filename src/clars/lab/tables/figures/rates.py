"""What becomes of accuracy over the rate, by the search: every rate that was tried, not the best alone."""

import statistics
from pathlib import Path

from clars.lab.tables.definition import ResolvedTable, read_search
from clars.lab.tables.figures.panels import axes_of, finish, lines, of_method
from clars.lab.tables.figures.style import canvas, not_run

Curve = dict[float, list[float]]  # of a method: the accuracies of all seeds by rate
_BELOW, _GAIN = 20, 5  # points below the best, and of gain or loss, that are shown: beyond them a rate fails


def accuracy_by_rate(table: ResolvedTable, out: Path, path: Path) -> None:
    """Draw validation accuracy over the peak rate at the largest batch of each network; with warmup dashed."""
    panels = _panels(table)
    with canvas(path, 10.5, 1.6 + 4.2 * lines(len(panels))) as picture:
        if not panels:
            not_run(picture)
        for number, ((network, batch), curves) in enumerate(panels.items()):
            axes = axes_of(picture, len(panels), number, f"{network}, batch {batch:,}", "peak rate")
            best = max(statistics.fmean(each) for curve in curves.values() for each in curve.values())
            axes.set(xscale="log", ylabel="top-1, validation split, %", ylim=(best - _BELOW, best + 1))
            for method, curve in curves.items():
                settings = table.tier.product.methods[method]
                style = of_method(table, method)
                rates = sorted(curve)
                means = [statistics.fmean(curve[rate]) for rate in rates]
                axes.plot(rates, means, label=settings.label, markersize=4, **style)
                low, high = ([end(curve[rate]) for rate in rates] for end in (min, max))
                axes.fill_between(rates, low, high, color=style["color"], alpha=0.12, linewidth=0)
        finish(
            picture,
            table,
            f"mean of the seeds, band from worst to best; dashed: with warmup; cut off {_BELOW} points below the best",
        )


def warmup_gain(table: ResolvedTable, out: Path, path: Path) -> None:
    """Draw accuracy with warmup minus without it, over the rate as a multiple of the best one without it."""
    panels = _panels(table)
    pairs = {name: each.warmup_of for name, each in table.tier.product.methods.items() if each.warmup_of}
    with canvas(path, 10.5, 1.6 + 3.6 * lines(len(panels))) as picture:
        if not panels:
            not_run(picture)
        for number, ((network, batch), curves) in enumerate(panels.items()):
            title = f"{network}, batch {batch:,}"
            axes = axes_of(picture, len(panels), number, title, "peak rate / best peak rate without warmup")
            axes.set(ylabel="gain by warmup, points")
            axes.set_xscale("log", base=2)
            axes.set_ylim(-_GAIN, _GAIN)
            axes.axhline(0, color="#888888", linewidth=1)
            for warm, plain in pairs.items():
                one, other = curves.get(warm, {}), curves.get(plain, {})
                if shared := sorted(one.keys() & other.keys()):
                    best = max(other, key=lambda rate: statistics.fmean(other[rate]))
                    gains = [statistics.fmean(one[rate]) - statistics.fmean(other[rate]) for rate in shared]
                    label = table.tier.product.methods[plain].label
                    axes.plot([rate / best for rate in shared], gains, label=label, **of_method(table, plain))
        finish(
            picture,
            table,
            f"mean of the seeds with warmup minus that without, at one peak rate; beyond {_GAIN} points cut off",
        )


def _panels(table: ResolvedTable) -> dict[tuple[str, int], dict[str, Curve]]:
    """Return the curves of each network at the largest batch that was searched, by method."""
    methods = read_search(table.search)["methods"]
    found: dict[tuple[str, int], dict[str, Curve]] = {}
    for source in table.sources if table.tier.product else ():
        curve = {
            entry["rate"]: entry["top1"] for entry in methods.get(source.key, {}).get("rates", ()) if entry["top1"]
        }
        if curve:
            found.setdefault((source.recipe, int(source.key.rpartition("-")[2])), {})[source.method] = curve
    largest = {network: max(batch for other, batch in found if other == network) for network, _ in found}
    return {place: curves for place, curves in found.items() if place[1] == largest[place[0]]}
