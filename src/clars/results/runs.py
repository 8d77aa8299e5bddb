"""Finding runs on disk: as the training loop leaves them, and as they are published beside their recipes."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from clars.errors import UserError
from clars.results import metrics, record
from clars.results.files import write_json
from clars.results.record import Record


@dataclass(frozen=True)
class Run:
    """A record, its lines of metrics (one an epoch), and the file that proves them."""

    record: Record
    metrics: list[dict]
    path: Path


def folder(out: Path, name: str, seed: int) -> Path:
    """Return where the run of one seed lies: `<out>/<name>/seed<k>`."""
    return out / name / f"seed{seed}"


def read(out: Path, name: str) -> list[Run]:
    """Return the runs of `name` under `out`, by seed.

    Both forms are read: `<name>/seed<k>/run.json` with `metrics.jsonl` beside it, and the published
    `<name>/seed<k>.json`.

    Raises:
        UserError: a file is there but is no record.
    """
    own = [read_folder(path.parent) for path in (out / name).glob(f"seed*/{record.FILE}") if _seed(path.parent.name)]
    published = [_read_published(path) for path in (out / name).glob("seed*.json") if _seed(path.stem)]
    return sorted(own + published, key=lambda run: run.record.seed)


def read_folder(path: Path) -> Run:
    """Read the run that the training loop left in a folder."""
    file = path / record.FILE
    return Run(Record.read(file), metrics.read_lines(path / metrics.FILE), file)


def publish(run: Run, results: Path, name: str) -> Path:
    """Write a run as one small file, `<results>/<name>/seed<k>.json`, and return its path."""
    path = results / name / f"seed{run.record.seed}.json"
    write_json(path, {"record": run.record.model_dump(mode="json"), "metrics": run.metrics})
    return path


def _seed(name: str) -> bool:
    return re.fullmatch(r"seed\d+", name) is not None


def _read_published(path: Path) -> Run:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Run(Record.model_validate(content["record"]), content["metrics"], path)
    except ValidationError as error:
        raise UserError(f"{path} is no record of a run: {record.first_problem(error)}.") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no record of a run: {error!r}.") from None
