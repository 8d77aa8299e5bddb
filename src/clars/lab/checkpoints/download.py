"""Downloading a checkpoint: no more bytes than were published, not for ever, and on from where it broke off."""

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec

from clars.errors import CheckpointError
from clars.lab.checkpoints import folder, http, hub
from clars.lab.checkpoints.manifest import Entry, File

CHUNK = 2**20
SLOWEST = 1_000  # bytes a second on the average, after PATIENCE seconds
PATIENCE = 30
Reader = Callable[[int], bytes]


def download(entry: Entry, target: Path) -> None:
    """Get the files of an entry into a folder, but those that are there already.

    Raises:
        CheckpointError: one cannot be reached, or is not what was published.
    """
    for name, wanted in entry.files.items():
        where = f"{entry.address.rstrip('/')}/{name}"
        if not _is_there(target / name, wanted):
            with hub.explained(where, "The same command tries again, by http from where it stopped."):
                _fetch(where, target / name, wanted)


def _fetch(where: str, target: Path, wanted: File) -> None:
    """Get one file: from the Hub by its own client, from elsewhere by hand."""
    part = target.with_name(f"{target.name}.part")
    if where.startswith("hf://"):
        _require_room(part, wanted.bytes)
        hub.fetch(where, part, wanted.bytes)
    else:
        _go_on(where, part, wanted)
    if not _is_there(part, wanted):
        raise CheckpointError(
            f"{where} is not what was published: its SHA-256 is not {wanted.sha256}, or it has more than "
            f"{wanted.bytes} bytes. Nothing of it is kept."
        )
    os.replace(part, target)


def _go_on(where: str, part: Path, wanted: File) -> None:
    """Read a file from where an earlier attempt has come to, at most one byte more than it may have."""
    have = part.stat().st_size if part.exists() else 0
    _require_room(part, wanted.bytes - have)
    if have < wanted.bytes:
        with _opened(where, have, wanted.bytes) as (read, start), part.open("ab") as local:
            local.truncate(start)  # to nothing, where the server cannot go on in the middle
            have = start + _copy(read, local.write, wanted.bytes + 1 - start)
    if have < wanted.bytes:
        raise CheckpointError(f"{where} ended after {have} of {wanted.bytes} bytes. The same command goes on.")


def _copy(read: Reader, write: Callable[[bytes], object], most: int) -> int:
    """Copy at most `most` bytes, and return how many came.

    Raises:
        CheckpointError: they come so slowly that they might as well not.
    """
    begun, copied = time.monotonic(), 0
    while copied < most and (chunk := read(min(CHUNK, most - copied))):
        write(chunk)
        copied += len(chunk)
        took = time.monotonic() - begun
        if took > PATIENCE and copied < SLOWEST * took:
            raise http.Refused(f"it sent {copied} bytes in {took:.0f} seconds. The same command goes on.")
    return copied


@contextmanager
def _opened(where: str, start: int, total: int) -> Iterator[tuple[Reader, int]]:
    """Yield a function that reads on in a file, and the byte from which it does: `start`, or 0."""
    store = where.partition("://")[0]
    if store in ("http", "https"):
        with http.opened(where, start, total) as body:
            yield body.read, body.start
    elif store == "file":
        with folder.opened(Path(fsspec.core.url_to_fs(where)[1]), links=True) as (local, _):
            local.seek(start)
            yield local.read, start
    else:
        with fsspec.open(where, "rb") as remote:
            remote.seek(start)
            yield remote.read, start


def _require_room(part: Path, more: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if more > free:
        raise CheckpointError(
            f"{part} needs {more:,} more bytes, and the disk has {free:,}. Make room, or set CLARS_CACHE."
        )


def _is_there(path: Path, wanted: File) -> bool:
    """Tell whether a file is what was published; one that is not is taken away."""
    if not path.exists():
        return False
    with path.open("rb") as file:
        same = path.stat().st_size == wanted.bytes and hashlib.file_digest(file, "sha256").hexdigest() == wanted.sha256
    if not same:
        path.unlink()
    return same
