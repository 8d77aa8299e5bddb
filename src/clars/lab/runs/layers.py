"""Statistics of layers over a run: lines as training writes them, columns beside a record in compact form."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import ConfigDict, PositiveInt, TypeAdapter, ValidationError

from clars.errors import UserError, quoted
from clars.lab import digests, strict_json
from clars.lab.files import write_text
from clars.lab.runs import layout, metrics
from clars.lab.runs.find import require_file
from clars.lab.runs.record import REMEDY, Run, first_problem

COLUMNS = ("weight_norm", "gradient_norm", "example_norm_sum", "variance_factor", "noise_scale")
Values = list[list[float | None]]


@dataclass(frozen=True)
class LayerHistory:
    """Values [steps, layers] of each column, and what was measured.

    A value is None where a layer was not measured, or the number was not finite.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)

    steps: list[PositiveInt]
    layers: list[str]
    columns: dict[str, Values]
    estimator: str | None = None  # such as "exact" or "group of 8"; older runs do not say

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
        UserError: the file is there and cannot be understood, is not whole, or is not the one that the run wrote.
    """
    raw, compact = run.path.with_name(layout.LAYERS), layout.compact_layers(run.path)
    if compact.exists():
        return _compact(compact)
    stated = run.record.digests
    if stated and stated.layers is None and run.record.status != "interrupted":
        return None  # what may lie there is not of this run
    require_file(run.record, "layers", raw)
    lines = metrics.read_lines(raw)
    problem = next(_wrong(lines), None)
    if problem:
        raise UserError(f"{raw} holds no statistics of layers: {problem}. {REMEDY}")
    return _columns(lines) if any(line["example_norm_sum"] is not None for line in lines) else None


def write_compact(run: Run, record: Path) -> None:
    """Write a run's statistics, if there are any, beside its record in compact form: four digits, and a digest."""
    if history := read(run):
        columns = {
            name: [[None if value is None else float(f"{value:.4g}") for value in row] for row in rows]
            for name, rows in history.columns.items()
        }
        content = {"steps": history.steps, "layers": history.layers, "columns": columns}
        content |= {} if history.estimator is None else {"estimator": history.estimator}
        content["sha256"] = digests.of_value(content)
        write_text(layout.compact_layers(record), json.dumps(content, separators=(",", ":")) + "\n")


def _compact(path: Path) -> LayerHistory:
    content = strict_json.read(path, "statistics of layers", REMEDY)
    stated = content.pop("sha256", None) if isinstance(content, dict) else None
    try:
        history = TypeAdapter(LayerHistory).validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        raise UserError(f"{path} holds no statistics of layers: {first_problem(error)}. {REMEDY}") from None
    shape = [len(history.layers)] * len(history.steps)
    whole = set(history.columns) == set(COLUMNS)
    if not whole or any([len(row) for row in rows] != shape for rows in history.columns.values()):
        raise UserError(f"{path} holds no statistics of layers: its columns are not of one shape. {REMEDY}")
    if stated not in (None, digests.of_value(content)):
        raise UserError(f"{path} was changed, as its own digest tells. {REMEDY}")
    return history


def _wrong(lines: list[dict]) -> Iterator[str]:
    """Yield what is wrong with lines: values that are none, a layer twice, or steps and layers that are left out."""
    seen: dict[int, set[str]] = {}
    for number, line in enumerate(lines, start=1):
        step, layer, values = line.get("step"), line.get("layer"), [line.get(name, "missing") for name in COLUMNS]
        if type(step) is not int or step < 1 or type(layer) is not str:
            yield f"line {number} is of step {quoted(step)} and layer {quoted(layer)}"
        elif not all(value is None or type(value) in (int, float) for value in values):
            yield f"line {number} has no numbers under {', '.join(COLUMNS)}"
        elif line.get("estimator") != lines[0].get("estimator"):
            yield f"line {number} is of the estimator {quoted(line.get('estimator'))}, and the first of another"
        elif layer in seen.setdefault(step, set()):
            yield f"layer {quoted(layer)} stands twice at step {step}"
        else:
            seen[step].add(layer)
    known: set[str] = set()
    for number, (step, layers) in enumerate(seen.items(), start=1):
        if step != number * next(iter(seen)):
            yield f"step {step} follows where step {number * next(iter(seen))} should"
        if lacking := sorted(known - layers):  # a layer that was frozen at first may come later; none goes
            yield f"layer {quoted(lacking[0])} is missing at step {step}"
        known = layers


def _columns(lines: list[dict]) -> LayerHistory:
    steps = sorted({line["step"] for line in lines})
    layers = list(dict.fromkeys(line["layer"] for line in lines))
    found = {(line["step"], line["layer"]): line for line in lines}
    columns = {
        name: [[found.get((step, layer), {}).get(name) for layer in layers] for step in steps] for name in COLUMNS
    }
    return LayerHistory(steps, layers, columns, lines[0].get("estimator"))


def _ratio(weight: float | None, gradient: float | None, examples: float | None, decay: float) -> float | None:
    if weight is None or gradient is None or examples is None:
        return None
    bottom = gradient + decay * weight
    return (examples + decay * weight) / bottom if bottom else None
