"""The pictures of a table, those that its `figures` name."""

from pathlib import Path

from clars.lab.tables.definition import ResolvedTable
from clars.lab.tables.figures import batches, curves, first_epoch, layers, rates, spread

_DRAW = {
    "curves": curves.figure,
    "accuracy-by-batch": batches.accuracy_by_batch,
    "steps-to-target": batches.steps_to_target,
    "layers": layers.figure,
    "spread": spread.figure,
    "accuracy-by-rate": rates.accuracy_by_rate,
    "warmup-gain": rates.warmup_gain,
    "first-epoch": first_epoch.figure,
}


def draw(table: ResolvedTable, out: Path, target: Path) -> list[Path]:
    """Draw the runs of `table` under `out` into the folder `target`; return the pictures, figure.png for the curves."""
    pictures = {name: target / f"{'figure' if name == 'curves' else name}.png" for name in table.head.figures}
    for name, path in pictures.items():
        _DRAW[name](table, out, path)
    return list(pictures.values())
