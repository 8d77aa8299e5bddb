"""Image data sets of the `datasets` library: the splits and columns a recipe names, checked."""

from typing import Literal, NamedTuple

import datasets
import pyarrow as pa
import torch
from torch import Tensor

from clars.errors import DataError
from clars.lab.data import classes
from clars.lab.data.columns import Openers, holds_classes, holds_images, named_split, require_column
from clars.lab.data.images import EncodedImages
from clars.lab.data.memory import StoredImages
from clars.lab.data.source import open_splits
from clars.lab.data.splits import Images, Splits, hold_out
from clars.lab.data.transforms import build, mode_of, statistics, to_bytes
from clars.lab.recipes import schema


class _Columns(NamedTuple):
    images: datasets.Dataset
    labels: Tensor
    feature: object  # of the labels

    @property
    def all_rows(self) -> Tensor:
        return torch.arange(len(self.labels))


def load(data: schema.Data, evaluation: Literal["test", "validation"]) -> Splits:
    """Read the splits a recipe names; for evaluation="validation", or always, hold out a share of the training split.

    Raises DataError for a data set out of reach, a missing or empty split, a missing column or one of the
    wrong type, missing or negative labels, numbers of classes with gaps, and labels beyond the classes of the training
    split. Where the splits number classes otherwise, those of the training split count.
    """
    splits = open_splits(data)
    train = _columns(splits, "train_split", data)
    names = classes.names_of(train.feature)
    num_classes = len(names) if names else classes.count(train.labels, train.images.split, data)
    _refuse(train.labels >= num_classes, f"beyond the {num_classes} classes of training", train, data)
    kept = train.all_rows
    if evaluation == "validation" or data.hold_out:
        kept, held = hold_out(train.labels, data.validation_fraction, "data.validation_fraction")
    if evaluation == "validation":
        test = train
    else:
        test = _as_in_training(_columns(splits, "test_split", data), train, num_classes, data)
        held = test.all_rows
    read = _decoded if data.in_memory else _encoded
    return Splits(
        read(train, kept, data, training=True),
        read(test, held, data, training=False),
        num_classes,
        names,
        *statistics(data),
    )


def _encoded(columns: _Columns, rows: Tensor, data: schema.Data, training: bool) -> Images:
    return EncodedImages(columns.images, columns.labels, rows, build(data, training), mode_of(data))


def _decoded(columns: _Columns, rows: Tensor, data: schema.Data, training: bool) -> Images:
    images = EncodedImages(columns.images, columns.labels, rows, to_bytes(data), mode_of(data))
    pixels = torch.cat([images.__getitems__(part)[0] for part in torch.arange(len(images)).split(1000)])
    crop = training and data.augmentation == "crop"
    return StoredImages(pixels, images.labels, *statistics(data), crop=crop, rows=rows)


def _columns(splits: Openers, key: str, data: schema.Data) -> _Columns:
    split = named_split(splits, key, data)
    require_column(split, "image_column", data, holds_images, "images")
    require_column(split, "label_column", data, holds_classes, "class numbers")
    images = split.select_columns(data.image_column)
    images = images.cast_column(data.image_column, datasets.Image(decode=False))
    # Missing labels become -1, which is also how the Hub marks labels that are withheld.
    try:
        labels = split.data.column(data.label_column).cast("int64").fill_null(-1)
    except pa.ArrowInvalid as error:
        raise DataError(f"data.label_column={data.label_column!r}: no numbers of classes: {error}") from None
    columns = _Columns(images, torch.tensor(labels.to_numpy()), split.features[data.label_column])
    _refuse(columns.labels < 0, "missing or negative", columns, data)
    return columns


def _as_in_training(test: _Columns, train: _Columns, num_classes: int, data: schema.Data) -> _Columns:
    """Return the test split with the numbers that its classes have in training."""
    names, own = classes.names_of(train.feature), classes.names_of(test.feature)
    numbers = classes.numbers_in(names, own, data)
    known = len(own) if own else num_classes
    _refuse(test.labels >= known, f"beyond the {known} classes of training", test, data)
    if own is None:
        return test
    translated = torch.tensor([-1 if number is None else number for number in numbers])[test.labels]
    _refuse(translated < 0, "of classes that training does not have", test, data)
    return test._replace(labels=translated)


def _refuse(wrong: Tensor, problem: str, columns: _Columns, data: schema.Data) -> None:
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise DataError(
            f"data.label_column={data.label_column!r}: {int(wrong.sum())} labels of split"
            f" {str(columns.images.split)!r} are {problem};"
            f" the first, {classes.shown(int(columns.labels[row]), columns.feature)}, is in row {row}."
            " Choose a split or a column with a class for every image."
        )
