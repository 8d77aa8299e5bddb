"""Getting a checkpoint onto this machine: from beside the manifest, the cache, the Hub, or any store of fsspec."""

import os
import re
import shutil
import tempfile
import warnings
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from filelock import FileLock

from clars import cache
from clars.errors import CheckpointError, RecipeError, quoted
from clars.lab.checkpoints import download, form, hub, manifest
from clars.lab.checkpoints.form import Checkpoint
from clars.lab.checkpoints.manifest import Entry

REPOSITORY = r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w./-]+)?"  # of the Hub


def read(name: str | Path) -> Checkpoint:
    """Return a checkpoint: of the folder `name` where it is a path, else of that name, pulled if need be.

    ORG/NAME, perhaps with @REVISION, is a repository of the Hub where there is no such folder. A folder that is that of
    a name, by whatever path, has to have its files.

    Raises:
        CheckpointError: as `pull`.
    """
    if isinstance(name, Path) or os.sep in name or name.startswith("."):
        if not Path(name).is_dir() and re.fullmatch(REPOSITORY, str(name)):
            return _of_the_hub(str(name))
        if not Path(name).is_dir():
            raise CheckpointError(f"{quoted(str(name))} is no folder. `clars checkpoints list` shows the names.")
        return form.read(Path(name), _entry(Path(name)))
    return _read(name, manifest.find(name))


def pull(name: str, to: Path | None = None) -> Path:
    """Return a folder with the checked files of a checkpoint.

    What was pulled before is taken from the cache, without network. A download that breaks off is gone on with by the
    next call. Nothing is put in place before the SHA-256 of every file was compared with the manifest's.

    Args:
        name: of the manifest, or ORG/NAME[@REVISION] of the Hub.
        to: a new folder to copy the files into.

    Raises:
        CheckpointError: there is no such checkpoint, it cannot be reached, or it is not what was published.
    """
    if to is not None and to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise CheckpointError(f"--to {to} is there already. Choose a new folder.")
    found = _of_the_hub(name) if re.fullmatch(REPOSITORY, name) else _read(name, manifest.find(name))
    return _copy(found, to) if to else found.path


def _of_the_hub(name: str) -> Checkpoint:
    """Return a checkpoint of a repository that no manifest names; only its own files speak for it."""
    found = hub.snapshot(name)
    with tempfile.TemporaryDirectory() as temporary:  # the cache of the Hub's client has links, a checkpoint none
        for file in form.FILES:
            if (found / file).is_file():
                shutil.copyfile(found / file, Path(temporary, file))
        try:
            return replace(form.read(Path(temporary)), path=found)
        except CheckpointError as error:
            told = str(error).replace(temporary, f"hf://{name}")
            raise CheckpointError(f"{told} timm.create_model('hf-hub:{name}') reads those of others.") from None


def place(name: str, entry: Entry) -> Path:
    """Return where a pulled checkpoint lies in the cache: a folder for each content of the weights."""
    return cache.folder("checkpoints") / f"{name}-{entry.files[form.WEIGHTS].sha256[:16]}"


def _read(name: str, entry: Entry) -> Checkpoint:
    return _cached(name, entry) if entry.address else form.read(manifest.every()[name][1] / name, entry)


def _entry(folder: Path) -> Entry | None:
    """Return what the manifest says of a folder, whichever of its names the path takes: links, `..`, another case."""
    known = {}
    with suppress(RecipeError):  # there is no repository here
        known = manifest.every()
    for name, (entry, home) in known.items():
        for candidate in (home / name, place(name, entry)):
            if candidate.exists() and candidate.samefile(folder):
                return entry
    return None


def _cached(name: str, entry: Entry) -> Checkpoint:
    folder = place(name, entry)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        if folder.exists():
            try:
                return form.read(folder, entry)
            except CheckpointError as error:
                warnings.warn(f"{error} It is pulled again.", stacklevel=4)
                shutil.rmtree(folder)
        staging = folder.with_name(f".{folder.name}.partial")
        staging.mkdir(exist_ok=True)
        download.download(entry, staging)
        shutil.rmtree(staging / ".cache", ignore_errors=True)  # notes of the Hub's client
        found = form.read(staging, entry)
        staging.rename(folder)
        return replace(found, path=folder)


def _copy(found: Checkpoint, to: Path) -> Path:
    """Write the files as they were read and checked."""
    to.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=to.parent, prefix=".") as beside:
        new = Path(beside, "new")
        new.mkdir()
        for name, content in found.files.items():
            (new / name).write_bytes(content)
        if to.exists():
            to.rmdir()
        new.rename(to)
    return to
