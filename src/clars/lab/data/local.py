"""Local folders without a card: every split is read by itself, from files that are named one by one."""

import glob
import os
import re
from collections.abc import Iterator
from functools import cache, partial
from itertools import chain
from pathlib import Path

import datasets
from datasets.data_files import DataFilesDict, DataFilesList
from datasets.packaged_modules.arrow.arrow import Arrow
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from datasets.packaged_modules.parquet.parquet import Parquet
from datasets.packaged_modules.webdataset.webdataset import WebDataset

from clars.errors import DataError
from clars.lab.data import classes
from clars.lab.data.columns import Openers, Split
from clars.lab.data.folders import Contents, File, contents, places
from clars.lab.data.reading import reading
from clars.lab.recipes import schema

MOST_PARTS = 1000  # of pictures in a stream, which change places; each takes `datasets` half a millisecond
READERS = {".parquet": Parquet, ".arrow": Arrow, ".tar": WebDataset, "described": ImageFolder}


def open_splits(folder: Path, data: schema.Data) -> Openers:
    """Return what opens each split that a folder has; nothing is read before.

    Opening raises DataError where the files of a split are not clear (see `folders.contents`), cannot be read, number
    classes in several ways, or are files of the training split as well.
    """
    found = places(folder, data)
    read = cache(lambda name: contents(name, found[name]))

    def opened(name: str) -> Split:
        held = read(name)
        if name == data.test_split and data.train_split in found:
            _require_apart(read(data.train_split).files, held.files, data)
        where = f"data.path={data.path!r}"
        with reading(where, data):
            return _pictures(name, held, data) if held.kind == "pictures" else _tables(name, held, where, data)

    return {name: partial(opened, name) for name in found}


def _require_apart(train: list[File], test: list[File], data: schema.Data) -> None:
    known = {file.identity: file.path for file in train}
    for file in test:
        if file.identity in known:
            raise DataError(
                f"{file.path!r} of split {data.test_split!r} is the file {known[file.identity]!r} of split"
                f" {data.train_split!r}, by a link. What is trained on is no test; leave it out of one."
            )


def _pictures(name: str, held: Contents, data: schema.Data) -> Split:
    """Return a split with the columns `image` and `label`, whose classes are the folders of the pictures."""
    paths = [file.path for file in held.files]
    folders = [os.path.basename(os.path.dirname(path)) for path in paths]
    names = sorted(set(folders))
    number = {folder: index for index, folder in enumerate(names)}
    labels = [number[folder] for folder in folders]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    split = datasets.NamedSplit(_key(name))
    if not data.streaming:
        return datasets.Dataset.from_dict({"image": paths, "label": labels}, features=features, split=split)
    size = -(-len(paths) // MOST_PARTS)
    parts = [tuple(zip(paths[at : at + size], labels[at : at + size])) for at in range(0, len(paths), size)]
    return datasets.IterableDataset.from_generator(_rows, features=features, gen_kwargs={"parts": parts}, split=split)


def _rows(parts: list[tuple[tuple[str, int], ...]]) -> Iterator[dict]:
    for path, label in chain.from_iterable(parts):
        yield {"image": path, "label": label}


def _tables(name: str, held: Contents, where: str, data: schema.Data) -> Split:
    paths = [file.path for file in held.files]
    if held.kind in (".parquet", ".arrow"):
        classes.require_same(paths[1:], classes.names_in(paths[0], data.label_column), where, data)
    # Names of files are no patterns: `[1].parquet` would match another file than itself.
    files = DataFilesList.from_patterns([glob.escape(path) for path in paths])
    key = _key(name)
    builder = READERS[held.kind](dataset_name="local_folder", data_files=DataFilesDict({key: files}))
    if data.streaming:
        return builder.as_streaming_dataset(split=key)
    builder.download_and_prepare()
    return builder.as_dataset(split=key)


def _key(name: str) -> str:
    """Return the name of a split as `datasets` takes it: letters, digits and underscores."""
    return re.sub(r"\W", "_", name)
