"""The gradient noise scale over a run: the network's, its layers', and the batch that the run has."""

import textwrap
from pathlib import Path

from matplotlib.axes import Axes

from clars.lab.runs.find import Run
from clars.lab.runs.noise import NoiseLine
from clars.lab.tables.figures.style import PALETTE, canvas

_LAYERS, _NETWORK, _BATCH = "#b0b0b0", PALETTE[0], PALETTE[1]


def figure(run: Run, lines: list[NoiseLine], path: Path) -> None:
    """Draw the lines of a run into the picture `path`, whole or not at all.

    Where the noise scale is unknown or infinite, a line has a gap.
    """
    record = run.record
    with canvas(path, 4.6) as picture:
        axes = picture.subplots()
        steps = [line.step for line in lines]
        for number, name in enumerate(lines[-1].layers):
            values = [line.layers.get(name) for line in lines]
            _curve(axes, steps, values, color=_LAYERS, linewidth=0.8, label=None if number else "each layer")
        whole = [line.noise_scale for line in lines]
        _curve(axes, steps, whole, color=_NETWORK, linewidth=2.6, label="whole network")
        batch = record.global_batch_size
        axes.axhline(batch, color=_BATCH, linestyle="--", label=f"batch size, {batch:,}")
        axes.set(yscale="log", xlabel="step", ylabel="noise scale, examples")
        axes.set_xlim(0, steps[-1])
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
        title = f"Gradient noise scale: {record.recipe}@{record.version}, seed {record.seed}"
        title = textwrap.fill(" ".join([title, *record.overrides]), 80, max_lines=3)
        picture.suptitle(title, x=0.01, ha="left", weight="bold")
        picture.legend(loc="outside lower left", ncols=3, title="in gaps it is infinite, or unknown", alignment="left")


def _curve(axes: Axes, steps: list[int], values: list[float | None], **look: object) -> None:
    """Draw a line; a value that stands alone between gaps is a point."""
    known = [None, *values, None]
    alone = [
        here is not None and before is None and after is None
        for before, here, after in zip(known, known[1:], known[2:])
    ]
    drawn = [float("nan") if value is None else value for value in values]
    axes.plot(steps, drawn, marker=".", markevery=alone, markersize=5, **look)
