"""Getting a checkpoint onto this machine: from beside the manifest, the cache, the Hub, or any store of fsspec."""

import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import fsspec
from filelock import FileLock

from clars import cache
from clars.checkpoints import form, manifest
from clars.checkpoints.hub import explained
from clars.checkpoints.manifest import Entry, File
from clars.errors import CheckpointError

CHUNK = 2**20


def find(name: str | Path) -> Path:
    """Return the folder of a checkpoint: `name` itself where it is a folder, else that of the name, pulled if need be.

    Raises:
        CheckpointError: as `pull`.
    """
    if isinstance(name, Path) or os.sep in name or name.startswith("."):
        if not Path(name).is_dir():
            raise CheckpointError(f"{str(name)!r} is no folder. `clars checkpoints list` shows the names.")
        return Path(name)
    return pull(name)


def pull(name: str, to: Path | None = None) -> Path:
    """Return a folder with the checked files of a checkpoint.

    What was pulled before is taken from the cache, without network. A download that breaks off is gone on with by the
    next call. Nothing is put in place before the SHA-256 of every file was compared with the manifest's.

    Args:
        name: of the manifest.
        to: a new folder to copy the files into.

    Raises:
        CheckpointError: there is no such checkpoint, it cannot be reached, or it is not what was published.
    """
    entry = manifest.find(name)
    if to is not None and to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise CheckpointError(f"--to {to} is there already. Choose a new folder.")
    folder = _cached(name, entry) if entry.address else manifest.root() / name
    manifest.check_files(folder, entry)
    form.read(folder)
    return _copy(folder, to) if to else folder


def place(name: str, entry: Entry) -> Path:
    """Return where a pulled checkpoint lies in the cache: a folder for each content of the weights."""
    return cache.folder("checkpoints") / f"{name}-{entry.files[form.WEIGHTS].sha256[:16]}"


def _cached(name: str, entry: Entry) -> Path:
    folder = place(name, entry)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if folder.exists():
            try:
                manifest.check_files(folder, entry)
                return folder
            except CheckpointError as error:
                warnings.warn(f"{error} It is pulled again.", stacklevel=4)
                shutil.rmtree(folder)
        staging = folder.with_name(f".{folder.name}.partial")
        staging.mkdir(exist_ok=True)
        _download(entry, staging)
        form.read(staging)
        staging.rename(folder)
    return folder


def _download(entry: Entry, staging: Path) -> None:
    with explained(entry.address, "The same command goes on where it stopped."):
        store, folder = fsspec.core.url_to_fs(entry.address, skip_instance_cache=True)
        for name, wanted in entry.files.items():
            if not (staging / name).exists():
                source = f"{folder.rstrip('/')}/{name}"
                _fetch(
                    lambda source=source: store.open(source, "rb"), staging / name, wanted, f"{entry.address}/{name}"
                )


def _fetch(opened: Callable[[], BinaryIO], target: Path, wanted: File, where: str) -> None:
    """Read a file from where an earlier attempt has come to, at most one byte more than it may have."""
    part = target.with_name(f"{target.name}.part")
    have = part.stat().st_size if part.exists() else 0
    if have < wanted.bytes:
        with opened() as remote, part.open("ab") as local:
            if have:
                remote.seek(have)
            while have <= wanted.bytes and (chunk := remote.read(min(CHUNK, wanted.bytes + 1 - have))):
                local.write(chunk)
                have += len(chunk)
    if have < wanted.bytes:
        raise CheckpointError(f"{where} ended after {have} of {wanted.bytes} bytes. The same command goes on.")
    found = manifest.describe(part)
    if found != wanted:
        part.unlink()
        raise CheckpointError(
            f"{where} is not what was published: SHA-256 {found.sha256} instead of {wanted.sha256}, or more than "
            f"{wanted.bytes} bytes. Nothing of it is kept."
        )
    os.replace(part, target)


def _copy(folder: Path, to: Path) -> Path:
    to.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=to.parent, prefix=".") as beside:
        new = Path(beside, "new")
        new.mkdir()
        for name in form.FILES:
            shutil.copyfile(folder / name, new / name)
        if to.exists():
            to.rmdir()
        new.rename(to)
    return to
