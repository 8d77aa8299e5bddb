"""Reading runs: from the folders that training leaves, and in compact form from beside their recipes."""

from pathlib import Path

from clars.errors import UserError
from clars.lab import digests
from clars.lab.recipes.load import Resolved
from clars.lab.runs import compact, consistency, layout, metrics
from clars.lab.runs.record import REMEDY, Record, Run


def read(out: Path, name: str) -> list[Run]:
    """Return the runs of `name` under `out`, by seed.

    Both forms are read: `<name>/seed<k>/run.json` with `metrics.jsonl` beside it, and the compact
    `<name>/seed<k>.json`.

    Raises:
        UserError: a file is there but is no record, or is not as the run left it; or a seed is there twice.
    """
    own = [read_folder(path) for path in layout.folders(out, name)]
    kept = [_checked(compact.read(path)) for path in layout.compacts(out, name)]
    found: dict[int, Run] = {}
    for run in own + kept:
        if (other := found.setdefault(run.record.seed, run)) is not run:
            raise UserError(f"seed {run.record.seed} is there twice: {other.path} and {run.path}. Remove one of them.")
    return [run for _, run in sorted(found.items())]


def read_folder(path: Path, seed: int | None = None) -> Run:
    """Read the run that the training loop left in a folder, which must be of `seed` where that is given.

    Raises:
        UserError: as `read`.
    """
    file = path / layout.RECORD
    found = Record.read(file)
    if seed is not None and found.seed != seed:
        raise UserError(f"{file} is of seed {found.seed}, and seed {seed} belongs there. {REMEDY}")
    require_file(found, "metrics", path / layout.METRICS)
    return _checked(Run(found, metrics.read_lines(path / layout.METRICS), file))


def require_whole(path: Path, resolved: Resolved) -> None:
    """Check all that a run's folder says before it is released: record, lines and weights, and the recipe's own word.

    Raises:
        UserError: something is missing or was changed, or contradicts something else.
    """
    run = read_folder(path)
    consistency.agree(run.record, resolved, run.path)
    for name, file in layout.BESIDE.items():
        require_file(run.record, name, path / file)


def require_file(found: Record, name: str, path: Path) -> None:
    """Check that a file beside a record is the one whose digest the record has, if it has one.

    Raises:
        UserError: it is not there, or has changed.
    """
    stated = getattr(found.digests, name, None)
    if stated and not (path.exists() and digests.of_file(path) == stated):
        what = "has changed since the run ended" if path.exists() else "is gone"
        raise UserError(f"{path} {what}: by {layout.RECORD} beside it, its SHA-256 is {stated}. {REMEDY}")


def _checked(run: Run) -> Run:
    consistency.check(run.record, run.metrics, run.path)
    return run
