"""What `datasets` has made of a data set: by its card, or, where that says nothing, by words in the paths of files."""

import os
from collections.abc import Sequence
from pathlib import Path

import datasets
from datasets.packaged_modules.folder_based_builder.folder_based_builder import FolderBasedBuilder
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard

from clars.errors import DataError
from clars.lab.data import classes
from clars.lab.recipes import schema

CARD = "README.md"
TYPED = (".parquet", ".arrow")  # these tell the names of classes themselves


def declared(folder: Path) -> list[str]:
    """Return the configurations whose files the card in a folder names, split by split; none without such a card."""
    if not (folder / CARD).is_file():
        return []
    configs = MetadataConfigs.from_dataset_card_data(DatasetCard.load(folder / CARD).data)
    return list(configs) if all("data_files" in config for config in configs.values()) else []


def check(builder: datasets.DatasetBuilder, where: str, data: schema.Data) -> None:
    """Raise DataError where one file is of both splits, two folders make one class, or classes are numbered variously.

    Of files elsewhere, only the first of each split is opened.
    """
    found = builder.config.data_files or {}
    train, test = (list(map(str, found.get(name, ()))) for name in (data.train_split, data.test_split))
    if both := set(train) & set(test):
        raise DataError(
            f"{where}: {min(both)!r} is a file of {data.train_split!r} and of {data.test_split!r}. Without a card that"
            " names the files of each split, they are told by words in their paths. Download the data set, put it"
            f" into folders of the names {data.train_split!r} and {data.test_split!r}, and pass data.path=DIR."
        )
    for files in (train, test):
        if isinstance(builder, FolderBasedBuilder) and not _described(files):
            _require_one_folder_each(files, where)
        typed = [file for file in files if file.lower().endswith(TYPED)]
        remote = any("://" in file for file in typed)
        # What the card does not tell is read from the first file of all, for all.
        names = classes.names_of((builder.info.features or {}).get(data.label_column))
        if names is None and (typed_train := [file for file in train if file.lower().endswith(TYPED)]):
            names = classes.names_in(typed_train[0], data.label_column)
        classes.require_same(typed[:1] if remote else typed, names, where, data)


def _described(files: Sequence[str]) -> bool:
    return any(os.path.basename(file) in FolderBasedBuilder.METADATA_FILENAMES for file in files)


def _require_one_folder_each(pictures: Sequence[str], where: str) -> None:
    folders: dict[str, str] = {}
    for picture in pictures:
        folder = os.path.dirname(picture)
        other = folders.setdefault(os.path.basename(folder), folder)
        if other != folder:
            raise DataError(
                f"{where}: the folders {other!r} and {folder!r} would be one class, by their name. Rename one of them."
            )
