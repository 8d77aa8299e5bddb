"""Files that are either whole or not there."""

import errno
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from clars.errors import UserError

if TYPE_CHECKING:  # what writes text needs no torch
    from torch import Tensor

_NO_LOCKS = (errno.EBADF, errno.ENOLCK, errno.ENOTSUP, errno.EINVAL)  # of file systems over a network


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; once written, it takes the place of `path`. Folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # The ending stays: writers of pictures choose the format by it.
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written)  # else a power failure may leave the new name and none of the content
        os.replace(temporary, path)
        _sync_folder(path.parent)  # else it may leave the old name
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # of file systems that cannot
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    """Write JSON, whole or not at all.

    Raises:
        ValueError: `value` holds a number that is not finite, which JSON does not know.
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_tensors(path: Path, tensors: "Mapping[str, Tensor]", metadata: dict[str, str]) -> None:
    """Write a safetensors file, whole or not at all; a full disk is an OSError as it is for other files."""
    from safetensors.torch import save_file

    with replacing(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode
        try:
            save_file({name: value.contiguous() for name, value in tensors.items()}, temporary, metadata)
        except SafetensorError as error:
            raise OSError(errno.EIO, str(error), str(path)) from None
        temporary.chmod(mode)  # safetensors lets nobody but the owner read


def take_away_unfinished(folder: Path) -> None:
    """Remove what a process left in `folder` that was killed while it wrote there, by `replacing` or by safetensors.

    No other process may be writing there; see `held`.
    """
    for pattern in (".[0-9]*.*", ".tmp??????"):
        for unfinished in filter(Path.is_file, folder.glob(pattern)):
            unfinished.unlink(missing_ok=True)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other processes from writing into `folder`, which is made; one that stays empty is taken away again.

    The lock is on the folder itself and ends with the process, however that ends.

    Raises:
        UserError: another process holds it.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UserError(f"{folder}: another process is writing there. Wait for it, or choose another --out.") from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    try:
        yield
    finally:
        os.close(descriptor)
        with suppress(OSError):  # not empty
            for path in made:
                path.rmdir()
