"""What becomes of accuracy over the rate, by the search: every rate that was tried, not the best alone."""

import statistics
from pathlib import Path

from matplotlib.axes import Axes

from clars.lab.tables.definition import ResolvedTable, read_search
from clars.lab.tables.figures.looks import looks
from clars.lab.tables.figures.panels import Curve, Panel, Place, Sketch, at_largest, guesses, title_of
from clars.lab.tables.figures.style import GREY

Tried = dict[float, list[float]]  # of a method: the accuracies of all seeds by rate
_BELOW, _GAIN = 20, 5  # points below the best, and of gain or loss, that are shown: beyond them a rate fails


def accuracy_by_rate(table: ResolvedTable, _: Path) -> Sketch:
    """Show validation accuracy over the peak rate at the largest batch of each network."""
    look = looks(table)

    def panel(place: Place, methods: dict[str, Tried]) -> Panel:
        best = _best(methods)

        def frame(axes: Axes) -> None:
            axes.set(
                xscale="log", xlabel="peak rate", ylabel="top-1, validation split, %", ylim=(best - _BELOW, best + 1)
            )

        curves = [_curve(_label(table, name), look[name], tried) for name, tried in methods.items()]
        return Panel(title_of(place), curves, frame, place=place, best=best)

    caption = f"mean of the seeds, band from worst to best; cut off {_BELOW} points below the best"
    return Sketch([panel(*each) for each in _searched(table).items()], caption, "no rates were searched")


def warmup_gain(table: ResolvedTable, _: Path) -> Sketch:
    """Show accuracy with warmup minus without it, over the rate as a multiple of the best one without it."""
    look, product = looks(table), table.tier.product
    pairs = {each.warmup_of: name for name, each in product.methods.items() if each.warmup_of} if product else {}

    def panel(place: Place, methods: dict[str, Tried]) -> Panel:
        found = [(plain, warm) for plain, warm in pairs.items() if {plain, warm} <= methods.keys()]
        curves = [
            Curve(_label(table, plain), look[plain], *_gain(methods[plain], methods[warm], table.head.chance))
            for plain, warm in found
        ]
        return Panel(title_of(place), curves, _frame_of_gain, place=place, best=_best(methods))

    shown = f"at one peak rate, where either learns; cut off beyond {_GAIN} points"
    caption = f"mean of the seeds with warmup minus that without, {shown}"
    return Sketch([panel(*each) for each in _searched(table).items()], caption, "no rates were searched")


def _curve(label: str, look: dict, tried: Tried) -> Curve:
    rates = sorted(tried)
    mean, low, high = ([of(tried[rate]) for rate in rates] for of in (statistics.fmean, min, max))
    return Curve(label, look, rates, mean, (low, high))


def _gain(plain: Tried, warm: Tried, chance: float | None) -> tuple[list[float], list[float]]:
    """Return the rates, over the best without warmup, at which either learns, and the gains there."""
    one, other = ({rate: statistics.fmean(found) for rate, found in each.items()} for each in (plain, warm))
    rates = [rate for rate in sorted(one.keys() & other.keys()) if not guesses(max(one[rate], other[rate]), chance)]
    best = max(one, key=one.__getitem__)
    return [rate / best for rate in rates], [other[rate] - one[rate] for rate in rates]


def _frame_of_gain(axes: Axes) -> None:
    axes.set_xscale("log", base=2)
    axes.set(xlabel="peak rate / best peak rate without warmup", ylabel="gain by warmup, points", ylim=(-_GAIN, _GAIN))
    axes.axhline(0, color=GREY, linewidth=1)


def _best(methods: dict[str, Tried]) -> float:
    return max(statistics.fmean(each) for tried in methods.values() for each in tried.values())


def _label(table: ResolvedTable, method: str) -> str:
    return table.tier.product.methods[method].label


def _searched(table: ResolvedTable) -> dict[Place, dict[str, Tried]]:
    """Return what was tried on each network at the largest batch that was searched, by method."""
    methods = read_search(table.search)["methods"]
    found: dict[Place, dict[str, Tried]] = {}
    for source in table.sources if table.tier.product else ():
        tried = {
            entry["rate"]: entry["top1"] for entry in methods.get(source.key, {}).get("rates", ()) if entry["top1"]
        }
        if tried:
            found.setdefault((source.recipe, int(source.key.rpartition("-")[2])), {})[source.method] = tried
    return at_largest(found)
