"""Lines of numbers over a run: `metrics.jsonl` with one an epoch, `layers.jsonl` with one a layer and logged step.

`noise.jsonl` has one a logged step.
"""

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from clars.errors import UserError
from clars.lab import strict_json
from clars.lab.files import replacing, write_text
from clars.lab.runs.record import finite


@dataclass(frozen=True)
class Mark:
    """How far a file of lines has come: its length in bytes, and their SHA-256."""

    bytes: int = 0
    sha256: str = hashlib.sha256().hexdigest()


class Metrics:
    """Appends lines to a .jsonl file, for one process. Numbers that are not finite become null.

    Args:
        path: the file; a folder that is missing is made.
        resume_at: where the file stood at the state that a resumed run goes on from. Later lines are cut, as the run
            will write them anew.

    Raises:
        UserError: the file does not begin with the lines that stood there.
    """

    def __init__(self, path: Path, resume_at: Mark = Mark()):
        self.path = path
        kept = lines_before(path, resume_at)
        self._sha256, self._bytes = hashlib.sha256(kept), len(kept)
        with replacing(path) as temporary:
            temporary.write_bytes(kept)

    def append(self, *lines: dict[str, object]) -> None:
        """Add lines of plain numbers and strings."""
        content = encoded(lines)
        with self.path.open("ab") as file:
            file.write(content)
        self._sha256.update(content)
        self._bytes += len(content)

    def sync(self) -> Mark:
        """Wait until the lines are on disk, and return where the file stands."""
        with self.path.open("rb") as file:
            os.fsync(file)
        return Mark(self._bytes, self._sha256.hexdigest())


def lines_before(path: Path, mark: Mark) -> bytes:
    """Return the beginning of a file, up to a mark.

    Raises:
        UserError: the lines that stood there are not what they were.
    """
    if not mark.bytes:
        return b""
    content = b""
    if path.exists():
        with path.open("rb") as file:
            content = file.read(mark.bytes)
    if hashlib.sha256(content).hexdigest() != mark.sha256:
        raise UserError(
            f"{path}: lines are missing or changed that were there when the state of the run was saved, and the run "
            "does not go on without them. Restore the file, or start anew with --overwrite."
        )
    return content


def read_lines(path: Path) -> list[dict]:
    """Return the lines of a .jsonl file, none if there is no file; a last line without its end is left out.

    Raises:
        UserError: a line is no JSON object.
    """
    return parsed(path.read_bytes(), path) if path.exists() else []


def parsed(content: bytes, path: Path) -> list[dict]:
    """Return the lines that the content of a file holds; see `read_lines`."""
    *whole, _ = content.split(b"\n")
    lines = []
    for number, line in enumerate(whole, start=1):
        try:
            lines.append(strict_json.parse(line))
            if not isinstance(lines[-1], dict):
                raise ValueError("it holds no keys and values")
        except ValueError as error:
            raise UserError(
                f"{path}: line {number} is not JSON as a run writes it: {error}. Restore the file, or run it again."
            ) from None
    return lines


def write_csv(lines: Path, path: Path) -> None:
    """Write the lines of a .jsonl file as a table, whole or not at all; a value that is a list has no column."""
    found = read_lines(lines)
    names = [name for name in dict.fromkeys(key for line in found for key in line) if not _lists(name, found)]
    text = io.StringIO()
    writer = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    write_text(path, text.getvalue())


def _lists(name: str, lines: list[dict]) -> bool:
    return any(isinstance(line.get(name), list) for line in lines)


def encoded(lines: Iterable[dict]) -> bytes:
    """Return lines as they stand in a file."""
    rows = ({name: finite(value) for name, value in line.items()} for line in lines)
    return "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows).encode("ascii")
