"""Finding runs on disk: as the training loop leaves them, and as they are published beside their recipes."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from clars.errors import UserError
from clars.recipes.load import Resolved
from clars.results import digests, evidence, metrics, reading
from clars.results.files import write_json
from clars.results.record import FILE, REMEDY, Record

# The files beside a record, by the names of their digests.
BESIDE = {"metrics": metrics.FILE, "layers": "layers.jsonl", "weights": "model.safetensors"}


@dataclass(frozen=True)
class Run:
    """A record, its lines of metrics (one an epoch), and the file that proves them."""

    record: Record
    metrics: list[dict]
    path: Path


def folder(out: Path, name: str, seed: int) -> Path:
    """Return where the run of one seed lies: `<out>/<name>/seed<k>`."""
    return out / name / f"seed{seed}"


def default_out(resolved: Resolved) -> Path:
    """Return where runs of a recipe go: changed recipes have a folder of their own, apart from those of tables."""
    return Path("runs", *(["changed"] if resolved.overrides else []), *resolved.name.split("/")[:-1])


def read(out: Path, name: str) -> list[Run]:
    """Return the runs of `name` under `out`, by seed.

    Both forms are read: `<name>/seed<k>/run.json` with `metrics.jsonl` beside it, and the published
    `<name>/seed<k>.json`.

    Raises:
        UserError: a file is there but is no record, or is not as the run left it; or a seed is there twice.
    """
    own = [read_folder(path.parent) for path in (out / name).glob(f"seed*/{FILE}") if _seed(path.parent.name)]
    published = [_read_published(path) for path in (out / name).glob("seed*.json") if _seed(path.stem)]
    found: dict[int, Run] = {}
    for run in own + published:
        if (other := found.setdefault(run.record.seed, run)) is not run:
            raise UserError(f"seed {run.record.seed} is there twice: {other.path} and {run.path}. Remove one of them.")
    return [run for _, run in sorted(found.items())]


def read_folder(path: Path, seed: int | None = None) -> Run:
    """Read the run that the training loop left in a folder, which must be of `seed` where that is given.

    Raises:
        UserError: as `read`.
    """
    file = path / FILE
    found = Record.read(file)
    if seed is not None and found.seed != seed:
        raise UserError(f"{file} is of seed {found.seed}, and seed {seed} belongs there. {REMEDY}")
    require_file(found, "metrics", path / BESIDE["metrics"])
    return _checked(Run(found, metrics.read_lines(path / BESIDE["metrics"]), file))


def require_whole(path: Path, resolved: Resolved) -> None:
    """Check all that a run's folder says before it is published: record, lines and weights, and the recipe's own word.

    Raises:
        UserError: something is missing or was changed, or contradicts something else.
    """
    run = read_folder(path)
    evidence.agree(run.record, resolved, run.path)
    for name, file in BESIDE.items():
        require_file(run.record, name, path / file)


def require_file(found: Record, name: str, path: Path) -> None:
    """Check that a file beside a record is the one whose digest the record has, if it has one.

    Raises:
        UserError: it is not there, or has changed.
    """
    stated = getattr(found.digests, name, None)
    if stated and not (path.exists() and digests.of_file(path) == stated):
        what = "has changed since the run ended" if path.exists() else "is gone"
        raise UserError(f"{path} {what}: by {FILE} beside it, its SHA-256 is {stated}. {REMEDY}")


def publish(run: Run, results: Path, name: str) -> Path:
    """Write a run as one small file, `<results>/<name>/seed<k>.json`, and return its path."""
    path = results / name / f"seed{run.record.seed}.json"
    write_json(path, {"record": run.record.model_dump(mode="json"), "metrics": run.metrics})
    return path


def _seed(name: str) -> bool:
    return re.fullmatch(r"seed\d+", name) is not None


def _read_published(path: Path) -> Run:
    content = reading.read(path, "record of a run", REMEDY)
    if not isinstance(content, dict) or content.keys() != {"record", "metrics"} or not _lines(content["metrics"]):
        raise UserError(f"{path} is no record of a run: it holds no record and lines of metrics. {REMEDY}")
    run = Run(Record.parse(content["record"], path), content["metrics"], path)
    stated = run.record.digests
    if stated and stated.metrics != hashlib.sha256(metrics.encoded(run.metrics)).hexdigest():
        raise UserError(f"{path}: its metrics were changed, as their digest in the record tells. {REMEDY}")
    return _checked(run)


def _lines(content: object) -> bool:
    return isinstance(content, list) and all(isinstance(line, dict) for line in content)


def _checked(run: Run) -> Run:
    evidence.check(run.record, run.metrics, run.path)
    return run
