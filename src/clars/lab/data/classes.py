"""Classes by their names: two splits, and two files of a split, may number them differently."""

from collections.abc import Iterable, Sequence
from itertools import zip_longest

import datasets
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from clars.errors import DataError
from clars.lab.recipes import schema

Names = tuple[str, ...] | None


def names_of(feature: object) -> Names:
    """Return the names of the classes that a column of this type tells; None if it tells none."""
    return tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else None


def shown(label: int | None, feature: object) -> str:
    """Return what a message calls a label: the name of its class, or the number."""
    names = names_of(feature) or ()
    return repr(names[label]) if label is not None and 0 <= label < len(names) else str(label)


def names_in(path: str, column: str) -> Names:
    """Return the names that a parquet or arrow file has for the classes in a column; None if it has none."""
    with fsspec.open(path, "rb") if "://" in path else open(path, "rb") as file:
        if path.lower().endswith(".parquet"):
            found = pq.read_schema(file)
        else:
            try:
                found = pa.ipc.open_stream(file).schema
            except pa.ArrowInvalid:
                found = pa.ipc.open_file(file).schema
    return names_of(datasets.Features.from_arrow_schema(found).get(column))


def require_same(paths: Iterable[str], names: Names, where: str, data: schema.Data) -> None:
    """Raise DataError if one of the files has names of classes and they are not `names`, in this order."""
    for path in paths:
        own = names_in(path, data.label_column)
        if own is not None and own != names:
            raise DataError(
                f"{where}: in {path!r}, {_difference(own, names or ())} by what the other files or the data set's card"
                f" say of {data.label_column!r}. Write all of them with the same names in the same order."
            )


def _difference(own: Sequence[str], names: Sequence[str]) -> str:
    pairs = enumerate(zip_longest(own, names))
    number, (here, there) = next((number, pair) for number, pair in pairs if pair[0] != pair[1])
    return f"class {number} is {here!r}, and {there!r}"


def numbers_in(train: Names, test: Names, data: schema.Data) -> list[int | None]:
    """Return, for each number of a class in the test split, that of the class of this name in training, or None.

    Raises DataError if one of the splits has names and the other has none.
    """
    if train == test:
        return list(range(len(train or ())))
    if train is None or test is None:
        named, bare = (data.test_split, data.train_split) if train is None else (data.train_split, data.test_split)
        raise DataError(
            f"data.label_column={data.label_column!r}: classes have names in split {named!r} and only numbers in"
            f" {bare!r}, which may be numbers of others. Store both as ClassLabel, or both as numbers."
        )
    known = {name: number for number, name in enumerate(train)}
    return [known.get(name) for name in test]


def count(labels: Tensor, split: object, data: schema.Data) -> int:
    """Return how many classes labels int64 [n] without names have: every number below the largest, and that.

    Raises DataError if one is missing: a network would have an output for each number, and these have no end.
    """
    found = labels.unique()
    highest = int(found[-1])
    if highest >= len(found):
        missing = int((found != torch.arange(len(found))).nonzero()[0])
        raise DataError(
            f"data.label_column={data.label_column!r}: the labels of split {str(split)!r} are {len(found)} different"
            f" numbers up to {highest}; {missing} is none of them. Number the classes from 0 without gaps, or store the"
            " column as ClassLabel, with a name for every class."
        )
    return len(found)
