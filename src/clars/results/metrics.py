"""Lines of numbers over a run: `metrics.jsonl` with one an epoch, `layers.jsonl` with one a layer and logged step."""

import json
from collections.abc import Iterable
from pathlib import Path

from clars.errors import UserError
from clars.results.files import write_text
from clars.results.record import finite

FILE = "metrics.jsonl"


class Metrics:
    """Appends lines to a .jsonl file, for one process. Numbers that are not finite become null.

    Args:
        path: the file; a folder that is missing is made.
        key: what orders the lines: "epoch" or "step".
        resume_at: the last value of `key` that the resumed run has behind it. Later lines are cut, as the run will
            write them anew. None starts an empty file.
    """

    def __init__(self, path: Path, key: str = "epoch", resume_at: int | None = None):
        self.path = path
        kept = [] if resume_at is None else [line for line in read_lines(path) if line[key] <= resume_at]
        write_text(path, _encode(kept))

    def append(self, *lines: dict[str, object]) -> None:
        """Add lines of plain numbers and strings."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_encode(lines))


def read_lines(path: Path) -> list[dict]:
    """Return the lines of a .jsonl file, none if there is no file; a last line without its end is left out.

    Raises:
        UserError: a line is not JSON.
    """
    if not path.exists():
        return []
    *whole, _ = path.read_text(encoding="utf-8").split("\n")
    try:
        return [json.loads(line) for line in whole]
    except ValueError as error:
        raise UserError(f"{path}: holds a line that is not JSON ({error}). Remove the file.") from None


def _encode(lines: Iterable[dict]) -> str:
    rows = ({name: finite(value) for name, value in line.items()} for line in lines)
    return "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
