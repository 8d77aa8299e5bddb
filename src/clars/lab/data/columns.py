"""Splits and columns that a recipe names, in what a data set has."""

from collections.abc import Callable, Iterable, Mapping

import datasets

from clars.errors import DataError, nearest
from clars.lab.recipes import schema

Split = datasets.Dataset | datasets.IterableDataset
Openers = Mapping[str, Callable[[], Split]]
"""What a data set has, by the name of the split; called, it opens that."""


def named_split(splits: Openers, key: str, data: schema.Data) -> Split:
    """Open the split that `data.key` names. Raises DataError if there is none, or if it cannot be read."""
    name = getattr(data, key)
    if name not in splits:
        raise DataError(f"data.{key}={name!r}: there is only {_listed(splits)}.{nearest(name, splits)}")
    return splits[name]()


def require_column(split: Split, key: str, data: schema.Data, fits: Callable[[object], bool], wanted: str) -> None:
    """Raise DataError if the split has no column of the name that `data.key` says, or none that `fits`."""
    name = getattr(data, key)
    if name not in split.features:
        raise DataError(
            f"data.{key}={name!r}: split {str(split.split)!r} has only the columns {_listed(split.features)}."
            f"{nearest(name, split.features)}"
        )
    if not fits(split.features[name]):
        raise DataError(
            f"data.{key}={name!r}: split {str(split.split)!r} holds {split.features[name]} there,"
            f" not {wanted}."
            f" Choose among the columns {_listed(split.features)}."
        )


def holds_images(feature: object) -> bool:
    """Say whether a column of this type can hold images."""
    if isinstance(feature, datasets.Value):
        return feature.dtype in ("binary", "large_binary")
    # Parquet files written without the library's own notes show the cells as plain structures.
    return isinstance(feature, datasets.Image) or (isinstance(feature, dict) and "bytes" in feature)


def holds_classes(feature: object) -> bool:
    """Say whether a column of this type can hold numbers of classes."""
    if isinstance(feature, datasets.Value):
        return feature.dtype.startswith(("int", "uint"))
    return isinstance(feature, datasets.ClassLabel)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)
