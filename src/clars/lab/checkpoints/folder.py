"""The files of a checkpoint's folder, and how they are read: ordinary ones only, and no more bytes than expected."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from clars.errors import CheckpointError

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
CARD = "README.md"
RECORD = "run.json"
RECIPE = "recipe.yaml"
FILES = (WEIGHTS, CONFIG, CARD, RECORD, RECIPE)
LIMIT = 8_000_000  # bytes of a file that is no weights
_WITHOUT_WAITING = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # a pipe in place of a file would be waited for


@contextmanager
def opened(path: Path, *, links: bool = False) -> Iterator[tuple[BinaryIO, int]]:
    """Yield an ordinary file, open for reading, and its size in bytes.

    What is asked of the file is asked of the open one, so that nothing can take its place in between.

    Args:
        path: the file.
        links: whether the path itself may be a link to it.

    Raises:
        CheckpointError: it is not there, cannot be read, or is a folder, a link, a device or a pipe.
    """
    try:
        descriptor = os.open(path, _WITHOUT_WAITING | (0 if links else os.O_NOFOLLOW))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing.") from None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link, a socket
            raise CheckpointError(f"{path} is no ordinary file. A checkpoint has no links.") from None
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from None
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        raise CheckpointError(f"{path} is no ordinary file. A checkpoint has no links.")
    with os.fdopen(descriptor, "rb") as file:
        yield file, found.st_size


def content(path: Path, most: int = LIMIT, *, links: bool = False) -> bytes:
    """Return what an ordinary file holds.

    Raises:
        CheckpointError: as `opened`, or it has more than `most` bytes.
    """
    with opened(path, links=links) as (file, size):
        found = file.read(most + 1) if size <= most else b""
    if size > most or len(found) > most:
        raise CheckpointError(f"{path} has {max(size, len(found))} bytes; at most {most} are read.")
    return found
