"""Runs that somebody chose, beside each other: accuracy and training loss over the epochs."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from clars.errors import UserError
from clars.lab.runs import Run
from clars.lab.tables.figures.curves import curve, whole_epochs
from clars.lab.tables.figures.looks import numbers, settings_of_method, styled
from clars.lab.tables.figures.panels import Panel, Sketch, paint
from clars.lab.terminal import plural

_SHOWN = {"top1": "top-1 accuracy, %", "train_loss": "training loss"}


def figure(runs: Mapping[str, Sequence[Run]], path: Path) -> None:
    """Draw a curve for each entry, the mean of its runs with a band from the lowest to the highest of them.

    Args:
        runs: the runs of each curve, which are its seeds, by the name that the legend has.
        path: the picture, whole or not at all.

    Raises:
        UserError: there is no curve to draw.
    """
    whole = sketch(runs)
    found = [panel for panel in whole.panels if panel.points > 1]
    if not found:
        raise UserError(f"{', '.join(runs)}: nothing was measured after two epochs, so there is no curve to draw.")
    paint(path, found, whole)


def sketch(runs: Mapping[str, Sequence[Run]]) -> Sketch:
    """Show accuracy and loss; runs of one method look alike but for the warmup, where that tells them apart."""
    first = [own[0].record for own in runs.values()]
    warm = [bool(record.schedule.get("warmup_epochs")) for record in first]
    methods = [settings_of_method(record.settings or {"optimizer": record.optimizer}) for record in first]
    looks = [styled(number, each) for number, each in zip(numbers(zip(methods, warm)), warm)]
    panels = []
    for key, title in _SHOWN.items():
        named = [(f"{name} ({plural(len(own), 'seed')})", look, own) for (name, own), look in zip(runs.items(), looks)]
        panels.append(Panel(title, [curve(*each, key) for each in named], whole_epochs))
    return Sketch(panels, "mean of the seeds, band from worst to best")
