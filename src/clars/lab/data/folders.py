"""Which files of a local folder belong to which split: told by whole names, never by words in their paths.

`datasets` takes every path with the word `train` in it for training data, that of DIR/test/train/0.png too.
"""

import os
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from clars.errors import DataError
from clars.lab.recipes import schema

USUAL = ("train", "validation", "test")
PICTURES = frozenset(ImageFolder.EXTENSIONS)
DESCRIBING = tuple(f"{os.sep}{name}" for name in ImageFolder.METADATA_FILENAMES)
TABLES = (".parquet", ".arrow", ".tar")
ARCHIVE = ".zip"
SHARD = re.compile(r"-(\d{5})-of-(\d{5})(?!\d)")
HIDDEN = (".", "__")  # what file systems and programs leave behind
NUMBER = re.compile(r"(-\d{5}-of-\d{5}.*|[-._ ]\d+)$")


class File(NamedTuple):
    """A file, and its device and number there, by which links to it are known."""

    path: str
    identity: tuple[int, int]

    @property
    def ending(self) -> str:
        return os.path.splitext(self.path)[1].lower()

    @property
    def stem(self) -> str:
        return os.path.splitext(os.path.basename(self.path))[0]


class Contents(NamedTuple):
    """What a split consists of: `kind` is "pictures", "described" (by a file among them) or the ending of tables."""

    kind: str
    files: list[File]


def places(folder: Path, data: schema.Data) -> dict[str, list[Path]]:
    """Return, by split, the folder or the files side by side that `folder` has for it, at its top or in `data`.

    A folder is the split of its name. A file is of a split that the recipe names if it begins with that name, set off
    from what follows; otherwise of what its own name says before a number.
    """
    wanted = sorted((data.train_split, data.test_split), key=len, reverse=True)
    found: dict[str, list[Path]] = {}
    for top in (folder, folder / "data"):
        for path in _visible(top) if top.is_dir() else ():
            if path.is_dir():
                if path != folder / "data" or "data" in wanted:
                    found.setdefault(path.name, []).append(path)
            elif path.suffix.lower() in (*TABLES, ARCHIVE):
                own = (name for name in wanted if re.match(rf"{re.escape(name)}([-._ 0-9]|$)", path.stem))
                found.setdefault(next(own, None) or NUMBER.sub("", path.stem), []).append(path)
    return {name: found[name] for name in (*USUAL, *sorted(found.keys() - set(USUAL))) if name in found}


def contents(split: str, found: Sequence[Path]) -> Contents:
    """Return the files of a split, in order.

    Raises DataError where it is not clear which they are: some are missing, some may be there twice, there are several
    kinds, or pictures are not in folders of classes; and where a name is no text.
    """
    here = f"the split {split!r} in {str(found[0].parent)!r}"
    folder = next((path for path in found if path.is_dir()), None)
    if folder and len(found) > 1:
        raise DataError(f"{here} is in several places: {_some(map(str, found))}. Leave one of them.")
    kinds: dict[str, list[File]] = {}
    for file in sorted(_below(folder)) if folder else map(_file, found):
        kinds.setdefault(_kind(file), []).append(file)
    others = kinds.pop("other", [])
    described = kinds.pop("describing", []) if "pictures" in kinds else []
    kind = _only_kind(here, kinds)
    _require_text(here, kinds[kind])
    if kind != "pictures":
        _require_whole(here, kinds[kind])
    elif not described:
        _require_classes(here, folder, kinds[kind])
    if others:
        warnings.warn(
            f"{here}: left out, as no pictures by their names: {_some(file.path for file in others)}.", stacklevel=2
        )
    return Contents("described" if described else kind, kinds[kind] + described)


def _kind(file: File) -> str:
    if file.path.endswith(DESCRIBING):
        return "describing"
    ending = file.ending
    if ending in PICTURES:
        return "pictures"
    return ending if ending in (*TABLES, ARCHIVE) else "other"


def _only_kind(here: str, kinds: dict[str, list[File]]) -> str:
    if ARCHIVE in kinds:
        raise DataError(f"{here} holds the archive {kinds[ARCHIVE][0].path!r}, which is not read. Unpack it.")
    if not kinds.keys() - {"describing"}:
        raise DataError(f"{here} holds neither pictures nor files of images ({', '.join(TABLES)}).")
    if len(kinds) > 1:
        raise DataError(f"{here} holds files of several kinds: {_some(files[0].path for files in kinds.values())}.")
    return next(iter(kinds))


def _require_text(here: str, files: list[File]) -> None:
    for file in files:
        if re.search("[\ud800-\udfff]", file.path):  # what Python makes of bytes that are no UTF-8
            raise DataError(f"{here}: the name {file.path!r} is not in UTF-8. Rename it.")


def _require_classes(here: str, folder: Path, pictures: list[File]) -> None:
    depth = str(folder).count(os.sep) + 2
    if wrong := [file.path for file in pictures if file.path.count(os.sep) != depth]:
        raise DataError(
            f"{here}: {len(wrong)} pictures are not in a folder of a class, such as {wrong[0]!r}."
            f" Name them {folder.name}/CLASS/NAME, without folders in between."
        )


def _require_whole(here: str, files: list[File]) -> None:
    """Refuse a split that lacks a file, or that may be there twice: cut in two ways, or cut and whole."""
    shards = [SHARD.search(file.stem) for file in files]
    numbers = [int(shard[1]) for shard in shards if shard]
    counts = {(os.path.dirname(file.path), shard[2]) for file, shard in zip(files, shards) if shard}
    stems = {os.path.splitext(file.path)[0] for file in files}
    beginnings = {stem[:end] for stem in stems for end in range(len(stem)) if stem[end] in "-._ "}
    if len(set(numbers)) < len(numbers) or len(counts) + (None in shards) > 1 or stems & beginnings:
        raise DataError(f"{here} may be there twice: {_some(file.path for file in files)}. Leave one copy.")
    count = max((int(shard[2]) for shard in shards if shard), default=0)
    if missing := sorted(set(range(count)) - set(numbers)):
        raise DataError(f"{here} has {len(files)} of {count} files; number {missing[0]} is missing. Fetch the others.")


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith(HIDDEN))


def _file(path: Path) -> File:
    found = path.stat()
    return File(str(path), (found.st_dev, found.st_ino))


def _below(folder: Path, above: frozenset[str] = frozenset()) -> Iterator[File]:
    """Yield the files at any depth. Links are followed, but not in circles."""
    real = os.path.realpath(folder)
    if real in above:
        return
    device = os.stat(real).st_dev
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(HIDDEN):
                continue
            if entry.is_dir():
                yield from _below(Path(entry.path), above | {real})
            elif entry.is_symlink():
                yield _file(Path(entry.path))
            else:
                yield File(entry.path, (device, entry.inode()))


def _some(paths: Iterable[str]) -> str:
    """Return the first of the paths, as a message may hold them."""
    first, *others = paths
    more = f" and {len(others) - 2} more" if len(others) > 2 else ""
    return ", ".join(map(repr, (first, *others[:2]))) + more
