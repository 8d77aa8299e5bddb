"""Runs that somebody chose, beside each other: accuracy and training loss over the epochs."""

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes

from clars.lab.runs import Run
from clars.lab.tables.figures.style import canvas, look
from clars.lab.terminal import plural

KINDS = (".png", ".svg", ".pdf")
_PANELS = {"top1": "top-1 accuracy, %", "train_loss": "training loss"}


def figure(runs: Mapping[str, Sequence[Run]], path: Path) -> None:
    """Draw a curve for each entry, the mean of its runs with a band from the lowest to the highest of them.

    Args:
        runs: the runs of each curve, which are its seeds, by the name that the legend has.
        path: the picture, whole or not at all.
    """
    with canvas(path, 10.5, 4.4 + 0.25 * len(runs)) as picture:
        for axes, (key, label) in zip(picture.subplots(1, len(_PANELS)), _PANELS.items()):
            axes.set(xlabel="epoch", ylabel=label)
            axes.xaxis.get_major_locator().set_params(integer=True)
            for number, (name, own) in enumerate(runs.items()):
                _curve(axes, name, own, key, number)
        handles, labels = picture.axes[0].get_legend_handles_labels()
        picture.legend(handles, labels, loc="outside lower left", ncols=1, alignment="left", fontsize=9)


def _curve(axes: Axes, name: str, runs: Sequence[Run], key: str, number: int) -> None:
    values: dict[int, list[float]] = defaultdict(list)
    for run in runs:
        for line in run.metrics:
            if line.get(key) is not None:
                values[line["epoch"]].append(line[key])
    epochs = sorted(values)
    style = look(number)
    label = f"{name} ({plural(len(runs), 'seed')})"
    axes.plot(epochs, [statistics.fmean(values[epoch]) for epoch in epochs], label=label, markersize=4, **style)
    low, high = ([end(values[epoch]) for epoch in epochs] for end in (min, max))
    axes.fill_between(epochs, low, high, color=style["color"], alpha=0.15, linewidth=0)
