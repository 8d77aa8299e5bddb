"""The pictures of a table, those that its `figures` name and that have something to show."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from clars.lab.tables.definition import ResolvedTable
from clars.lab.tables.figures import batches, curves, first_epoch, layers, rates, spread
from clars.lab.tables.figures.panels import Drawable, Place, Sketch, guesses, paint
from clars.lab.tables.figures.style import heading
from clars.lab.tables.kinds import KIND, KINDS
from clars.lab.tables.summary import by_row
from clars.lab.tables.verdict import void

_FIGURES = {
    "curves": (curves.figure, "Accuracy over the epochs"),
    "accuracy-by-batch": (batches.accuracy_by_batch, "Accuracy over the batch"),
    "steps-to-target": (batches.steps_to_target, "Steps to a target over the batch"),
    "layers": (layers.figure, "Statistics of layers over a run"),
    "spread": (spread.figure, "Norms of examples over the norm of their mean, by layer"),
    "accuracy-by-rate": (rates.accuracy_by_rate, "Accuracy over the rate"),
    "warmup-gain": (rates.warmup_gain, "Gain by warmup over the rate"),
    "first-epoch": (first_epoch.figure, "Training loss within the first epoch"),
}


@dataclass(frozen=True)
class Drawn:
    """A figure: its name, what it shows, the picture, or None where nothing was left of it, and what was left out."""

    name: str
    title: str
    path: Path | None
    left_out: str

    @property
    def note(self) -> str:
        """Return a sentence on what was left out, and why; nothing where all was drawn."""
        if self.path is None:
            return f"{self.name} is not drawn: {self.left_out}."
        return f"{self.name} leaves out: {self.left_out}." if self.left_out else ""


def draw(table: ResolvedTable, out: Path, target: Path, kind: str = KIND) -> list[Drawn]:
    """Draw the runs of `table` under `out` into the folder `target`, the curves as `figure`.

    A panel that says nothing is left out. Where none is left there is no picture, and one of before is taken away.
    """
    nothing = void(table, by_row(table, out))
    found = []
    for name in table.head.figures:
        make, title = _FIGURES[name]
        path = target / f"{'figure' if name == 'curves' else name}.{kind}"
        sketch = make(table, out)
        reasons = [_silent(panel, table, nothing) for panel in sketch.panels]
        kept = [panel for panel, reason in zip(sketch.panels, reasons) if not reason]
        if kept:
            paint(path, kept, sketch, heading(table))
        else:
            for each in KINDS:
                path.with_suffix(f".{each}").unlink(missing_ok=True)
        found.append(Drawn(name, title, path if kept else None, _told(sketch, reasons)))
    return found


def _silent(panel: Drawable, table: ResolvedTable, nothing: set[Place]) -> str:
    """Return why a panel says nothing; "" where it does."""
    if panel.place in nothing or (panel.best is not None and guesses(panel.best, table.head.chance)):
        return "no method learns"
    return "" if panel.points > 1 else "no line has two points"


def _told(sketch: Sketch, reasons: list[str]) -> str:
    """Return the reasons for which panels are left out, each with the panels' titles unless it is that of all."""
    titles: dict[str, list[str]] = defaultdict(list)
    for panel, reason in zip(sketch.panels, reasons):
        titles[reason].append(panel.title)
    if len(titles) < 2:
        return next(iter(titles), sketch.lacking)
    return "; ".join(f"{reason} ({'; '.join(own)})" for reason, own in titles.items() if reason)
