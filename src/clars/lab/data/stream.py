"""Image data sets that are read as a stream, from a folder or over the network, and never held as a whole."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Literal, NamedTuple, TypeVar

import datasets
import torch
from torch import Tensor

from clars.errors import DataError
from clars.lab.data import classes
from clars.lab.data.columns import Openers, holds_classes, holds_images, named_split, require_column
from clars.lab.data.images import decode, transformed
from clars.lab.data.reading import UNREADABLE
from clars.lab.data.source import open_splits
from clars.lab.data.splits import Batch, Images, Splits
from clars.lab.data.transforms import Transform, build, mode_of, statistics
from clars.lab.recipes import schema

T = TypeVar("T")


class Cell(NamedTuple):
    """An encoded image: `position` is its number in an epoch's order, which is what it draws its chances from."""

    position: int
    image: dict | None
    label: int


class StreamedImages(Images):
    """A split whose examples come in order. Where other images are asked for by index, these are by `Cell`.

    The process that reads hands cells on to workers, which decode them; so one order is read, whatever the number of
    workers and processes. `length` is the number of examples of an epoch. `numbers` has, for each class of the split,
    the number of that class in training, or None.
    """

    def __init__(
        self,
        stream: datasets.IterableDataset,
        data: schema.Data,
        transform: Transform,
        length: int | None,
        classes: int,
        numbers: Sequence[int | None],
    ) -> None:
        self.stream, self.data, self.transform, self.length = stream, data, transform, length
        self.classes, self.numbers = classes, numbers

    def __len__(self) -> int:
        return self.length

    def __getitems__(self, indices: Sequence[Cell]) -> Batch:
        split, mode = str(self.stream.split), mode_of(self.data)
        images = [
            transformed(self, decode(cell.image, f"example {cell.position} of split {split!r}", mode), cell.position)
            for cell in indices
        ]
        return torch.stack(images), torch.tensor([cell.label for cell in indices])

    def items(self) -> Iterator[Cell]:
        """Yield the examples of the split in its own order."""
        return self._cells(self.stream)

    def shuffled(self, seed: int, first: int) -> Iterator[Cell]:
        """Yield an epoch in the order of `seed`, without the `first` examples, which are read but not decoded.

        Files change places, and examples within a buffer of `data.shuffle_buffer`.
        Raises DataError if the split ends before the epoch.
        """
        cells = self._cells(self.stream.shuffle(seed=seed, buffer_size=self.data.shuffle_buffer))
        reached = first
        for cell in islice(cells, first, self.length):
            yield cell
            reached = cell.position + 1
        if reached < self.length:
            raise DataError(
                f"data.train_examples: split {str(self.stream.split)!r} ended before {self.length} examples."
                " State how many there are."
            )

    def _cells(self, stream: datasets.IterableDataset) -> Iterator[Cell]:
        image, label = self.data.image_column, self.data.label_column
        for position, row in enumerate(_rows(stream)):
            value = row[label]
            number = self.numbers[value] if value is not None and 0 <= value < len(self.numbers) else None
            if number is None:
                shown = classes.shown(value, stream.features[label])
                raise DataError(
                    f"data.label_column={label!r}: the label {shown} of example {position} of split"
                    f" {str(stream.split)!r} is none of the {self.classes} classes of training."
                    " Choose a split or a column with a class for every image."
                )
            yield Cell(position, row[image], number)


def load(data: schema.Data, evaluation: Literal["test", "validation"]) -> Splits:
    """Open the training and the test split as streams; of a stream no validation split can be held out.

    Raises DataError as `hub.load` does as far as is known without reading, for labels without named classes, and where
    the number of training examples is neither stated nor told by the data set. The rest is found while reading.
    """
    if evaluation == "validation":
        raise DataError(
            "evaluation.split='validation' cannot be held out of a stream. Name a split by data.test_split and use"
            " evaluation.split='test', or set data.streaming=false."
        )
    splits = open_splits(data)
    train, test = (_checked(splits, key, data) for key in ("train_split", "test_split"))
    names, test_names = (classes.names_of(split.features[data.label_column]) for split in (train, test))
    if names is None:
        raise DataError(
            f"data.label_column={data.label_column!r}: its classes have no names in the data set, and a stream cannot"
            " be searched for them. Set data.streaming=false."
        )
    numbers = classes.numbers_in(names, test_names, data)
    known = (train.info.splits or {}).get(data.train_split)
    length = data.train_examples or (known and known.num_examples)
    if not length:
        raise DataError(
            f"data.streaming=true: the data set does not tell how many examples split {data.train_split!r} has, from"
            " which the steps of an epoch follow. State it by data.train_examples."
        )
    if known and known.num_examples and length > known.num_examples:
        raise DataError(f"data.train_examples={length}: split {data.train_split!r} has {known.num_examples}.")
    count = len(names)
    return Splits(
        StreamedImages(train, data, build(data, training=True), length, count, range(count)),
        StreamedImages(test, data, build(data, training=False), None, count, numbers),
        count,
        names,
        *statistics(data),
    )


def _checked(splits: Openers, key: str, data: schema.Data) -> datasets.IterableDataset:
    split = named_split(splits, key, data)
    require_column(split, "image_column", data, holds_images, "images")
    require_column(split, "label_column", data, holds_classes, "class numbers")
    return split.select_columns([data.image_column, data.label_column]).cast_column(
        data.image_column, datasets.Image(decode=False)
    )


def _rows(stream: datasets.IterableDataset) -> Iterator[dict]:
    """Yield the rows. Raises DataError where the next cannot be read."""
    rows = iter(stream)
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except UNREADABLE as error:
            raise DataError(
                f"data.streaming=true: split {str(stream.split)!r} cannot be read further ({error})."
                " The same command resumes the run."
            ) from error
        yield row


def batched(items: Iterable[T], size: int) -> Iterator[Sequence[T]]:
    """Yield lists of `size` items, or tensors of a tensor's, the last perhaps of fewer."""
    if isinstance(items, Tensor):
        yield from items.split(size)
        return
    items = iter(items)
    for first in items:
        yield list(chain([first], islice(items, size - 1)))
