"""A run as one small file, the form in which evidence stays beside its recipe."""

import hashlib
from pathlib import Path

from clars.errors import UserError
from clars.lab import strict_json
from clars.lab.files import write_json
from clars.lab.runs import layout, metrics
from clars.lab.runs.record import REMEDY, Record, Run

_NO_LINES = hashlib.sha256().hexdigest()  # of a run that diverged in its first epoch, and has no metrics.jsonl


def write(run: Run, results: Path, name: str) -> Path:
    """Write a run as `<results>/<name>/seed<k>.json`, and return that path."""
    path = layout.compact(results, name, run.record.seed)
    write_json(path, {"record": run.record.model_dump(mode="json"), "metrics": run.metrics})
    return path


def read(path: Path) -> Run:
    """Return the run that such a file holds.

    Raises:
        UserError: it is none, or was changed after it was written.
    """
    content = strict_json.read(path, "record of a run", REMEDY)
    if not isinstance(content, dict) or content.keys() != {"record", "metrics"} or not _lines(content["metrics"]):
        raise UserError(f"{path} is no record of a run: it holds no record and lines of metrics. {REMEDY}")
    record, lines = Record.parse(content["record"], path), content["metrics"]
    stated = record.digests
    if stated and (stated.metrics or _NO_LINES) != hashlib.sha256(metrics.encoded(lines)).hexdigest():
        raise UserError(f"{path}: its metrics were changed, as their digest in the record tells. {REMEDY}")
    return Run(record, lines, path)


def _lines(content: object) -> bool:
    return isinstance(content, list) and all(isinstance(line, dict) for line in content)
