"""A compiled library that is kept for later processes: whole, made by this user, and as it was made."""

import hashlib
import os
import stat
from contextlib import suppress
from pathlib import Path

from clars.cache import VARIABLE

READABLE = 0o755  # by all, and writable by its owner alone, whatever the umask


def require_private(folder: Path) -> None:
    """Make a folder for libraries, or check that nobody else can put one there.

    Raises:
        OSError: it cannot be made, or others can write there.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=READABLE)
    if not _is_ours(folder.stat()):
        raise OSError(
            f"{folder} belongs to another user or can be written by others, who could put any code there: "
            f"set {VARIABLE} to a folder of your own, or take that right away (chmod go-w)"
        )


def is_sound(library: Path) -> bool:
    """Tell whether a library is there and has the content that `keep` put there."""
    try:
        if not all(_is_ours(path.lstat()) and path.is_file() for path in (library, _beside(library))):
            return False
        return _beside(library).read_text(encoding="ascii").strip() == _digest(library)
    except (OSError, ValueError):
        return False


def keep(made: Path, library: Path) -> None:
    """Put a library in place whole, on the disk as well, with its SHA-256 beside it."""
    note = made.with_suffix(".sha256")
    note.write_text(_digest(made) + "\n", encoding="ascii")
    for source, target in ((made, library), (note, _beside(library))):
        source.chmod(READABLE)
        _on_disk(source)  # else a power failure may leave the name and none of the content
        os.replace(source, target)
    with suppress(OSError):  # of file systems that cannot
        _on_disk(library.parent)


def _is_ours(found: os.stat_result) -> bool:
    """Tell whether only this user, or the system's, could have written something."""
    return found.st_uid in (0, os.geteuid()) and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _beside(library: Path) -> Path:
    return library.with_suffix(".sha256")


def _digest(library: Path) -> str:
    with library.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _on_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
