"""Statistics of layers over a run: lines as training writes them, columns as they are published."""

import json
from dataclasses import dataclass
from pathlib import Path

from clars.errors import UserError
from clars.results import metrics
from clars.results.files import write_text
from clars.results.runs import Run

FILE = "layers.jsonl"
COLUMNS = ("weight_norm", "gradient_norm", "example_norm_sum", "variance_factor", "noise_scale")
Values = list[list[float | None]]


@dataclass(frozen=True)
class LayerHistory:
    """Values [steps, layers] of each column; None where a layer was not measured, or the number was not finite."""

    steps: list[int]
    layers: list[str]
    columns: dict[str, Values]

    def rate_ratio(self, weight_decay: float) -> Values:
        """Return LARS's rate over CLARS's, (S + l ||w||) / (||g|| + l ||w||), at the same weights."""
        columns = (self.columns[name] for name in ("weight_norm", "gradient_norm", "example_norm_sum"))
        return [
            [_ratio(w, g, s, weight_decay) for w, g, s in zip(*row)]  # a row is a step
            for row in zip(*columns)
        ]


def read(run: Run) -> LayerHistory | None:
    """Return the statistics beside a run's record, in either form; None where there are none, or not of examples.

    Raises:
        UserError: the file is there and cannot be understood.
    """
    raw, published = run.path.with_name(FILE), run.path.with_name(f"{run.path.stem}.layers.json")
    try:
        if published.exists():
            return LayerHistory(**json.loads(published.read_text(encoding="utf-8")))
        lines = metrics.read_lines(raw)
        return _columns(lines) if any(line["example_norm_sum"] is not None for line in lines) else None
    except (ValueError, TypeError, KeyError) as error:
        place = published if published.exists() else raw
        raise UserError(f"{place} holds no statistics of layers: {error!r}. Restore it, or remove it.") from None


def publish(run: Run, record: Path) -> None:
    """Write a run's statistics beside its published record, to four digits, if there are any."""
    if history := read(run):
        columns = {
            name: [[None if value is None else float(f"{value:.4g}") for value in row] for row in rows]
            for name, rows in history.columns.items()
        }
        content = {"steps": history.steps, "layers": history.layers, "columns": columns}
        write_text(record.with_name(f"{record.stem}.layers.json"), json.dumps(content, separators=(",", ":")) + "\n")


def _columns(lines: list[dict]) -> LayerHistory:
    steps = sorted({line["step"] for line in lines})
    layers = list(dict.fromkeys(line["layer"] for line in lines))
    found = {(line["step"], line["layer"]): line for line in lines}
    columns = {
        name: [[found.get((step, layer), {}).get(name) for layer in layers] for step in steps] for name in COLUMNS
    }
    return LayerHistory(steps, layers, columns)


def _ratio(weight: float | None, gradient: float | None, examples: float | None, decay: float) -> float | None:
    if weight is None or gradient is None or examples is None:
        return None
    bottom = gradient + decay * weight
    return (examples + decay * weight) / bottom if bottom else None
