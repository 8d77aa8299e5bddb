"""Fashion-MNIST: 70,000 photographs of clothes in ten classes, 28x28 grey pixels.

Source: Xiao et al. 2017, arXiv 1708.07747.
"""

from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from clars.errors import DataError
from clars.lab.data import hub, idx, source
from clars.lab.data.digits import TensorImages
from clars.lab.data.memory import StoredImages, resize
from clars.lab.data.splits import HeldImages, Splits, hold_out
from clars.lab.data.transforms import per_channel
from clars.lab.recipes import schema

HUB = "zalando-datasets/fashion_mnist"
PACKAGE, PACKAGED = "dataset-fashion-mnist", Path("/usr/share/datasets/fashion-mnist")  # of Debian
HELD_OUT = 1 / 6  # of the training files: 10,000
SIZE = 28
CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
FILES, IMAGES, LABELS = {"train": "train", "test": "t10k"}, "images-idx3-ubyte", "labels-idx1-ubyte"
REMEDY = (
    f"Install Debian's package {PACKAGE}, or give data.path=DIR, a folder with the files train-images-idx3-ubyte,"
    " train-labels-idx1-ubyte, t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte, each perhaps with .gz, or with the"
    f" parquet files of {HUB}."
)


class _Part(NamedTuple):
    """Images uint8 [n, 1, 28, 28] and labels int64 [n]."""

    images: Tensor
    labels: Tensor


def load(data: schema.Data, evaluation: Literal["test", "validation"]) -> Splits:
    """Return what to train on, 50,000 images or always the same `data.train_examples` of them, and what to test on.

    The 10,000 others of the training files, as many of each class, are those for validation, and never trained on.
    Pixels lie in [0, 1] before `data.mean` and `data.std` are applied; without them the training images get mean 0 and
    standard deviation 1.

    Raises:
        DataError: there are no files, or they cannot be used.
    """
    if data.augmentation == "imagenet":
        raise DataError("data.augmentation='imagenet': fashion has small images. Use 'crop' or 'none'.")
    train, test = _files(data) or _parquet(data)
    kept, held = hold_out(train.labels, HELD_OUT, "the validation split")
    rows, fewer = kept, data.train_examples
    if fewer is not None and fewer < len(kept):
        rows = kept[hold_out(train.labels[kept], len(kept) - fewer, "data.train_examples")[0]]
    elif fewer is not None and fewer > len(kept):
        raise DataError(f"data.train_examples={fewer}: there are {len(kept)} to train on.")
    seen = _Part(resize(train.images, data.image_size), train.labels)
    other = seen if evaluation == "validation" else _Part(resize(test.images, data.image_size), test.labels)
    mean, std = _statistics(seen.images[rows], data)
    chosen = held if evaluation == "validation" else torch.arange(len(test.labels))
    return Splits(
        _images(seen, rows, (mean, std), data.augmentation == "crop"),
        _images(other, chosen, (mean, std), False),
        len(CLASSES),
        CLASSES,
        tuple(mean),
        tuple(std),
    )


def reachable(data: schema.Data) -> tuple[bool, str]:
    """Say whether the images are on this machine, and where they are or what to do about it."""
    if _has_files(_folder(data)):
        return True, f"folder {_folder(data)}"
    found, where = source.reachable(_on_hub(data))
    return (True, where) if found else (False, f"not on this machine. {REMEDY}")


def _folder(data: schema.Data) -> Path:
    return Path(data.path).expanduser() if data.path else PACKAGED


def _has_files(folder: Path) -> bool:
    return any(idx.find(folder, f"{name}-{IMAGES}") for name in FILES.values())


def _files(data: schema.Data) -> tuple[_Part, _Part] | None:
    """Read IDX files; None where there are none."""
    folder = _folder(data)
    return (_part(folder, FILES["train"]), _part(folder, FILES["test"])) if _has_files(folder) else None


def _part(folder: Path, name: str) -> _Part:
    stems = f"{name}-{IMAGES}", f"{name}-{LABELS}"
    for stem in stems:
        if idx.find(folder, stem) is None:
            raise DataError(f"{folder} has no {stem}, with or without .gz. {REMEDY}")
    images, labels = (idx.read(idx.find(folder, stem)) for stem in stems)
    if images.shape[1:] != (SIZE, SIZE) or labels.dim() != 1:
        raise DataError(
            f"{folder}: images {tuple(images.shape)} and labels {tuple(labels.shape)} are not Fashion-MNIST's."
        )
    return _checked(_Part(images[:, None], labels.long()), folder)


def _parquet(data: schema.Data) -> tuple[_Part, _Part]:
    """Read the data set in the schema that the Hub has, from `data.path`, the cache, or the Hub."""
    try:
        found = hub.load(_on_hub(data), "test")
    except DataError as error:
        raise DataError(f"data.name='fashion': {error} {REMEDY}") from error
    parts = [_Part(images.pixels, images.labels) for images in (found.train, found.test)]
    return tuple(_checked(part, data.path or HUB) for part in parts)


def _on_hub(data: schema.Data) -> schema.Data:
    return schema.Data(name=HUB, path=data.path, image_size=SIZE, channels=1, in_memory=True)


def _checked(part: _Part, where: object) -> _Part:
    if len(part.images) != len(part.labels):
        raise DataError(f"{where}: {len(part.images)} images have {len(part.labels)} labels. Fetch the files again.")
    if len(part.labels) and int(part.labels.max()) >= len(CLASSES):
        raise DataError(f"{where}: a label is {int(part.labels.max())}, and there are {len(CLASSES)} classes.")
    return part


def _statistics(images: Tensor, data: schema.Data) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation per channel: the recipe's, or those of the training images."""
    pixels = images.double() / 255
    mean = per_channel("data.mean", data.mean, data.channels) or [pixels.mean().item()] * data.channels
    std = per_channel("data.std", data.std, data.channels) or [pixels.std().item()] * data.channels
    return mean, std


def _images(part: _Part, rows: Tensor, statistics: tuple[list[float], list[float]], crop: bool) -> HeldImages:
    """Return images as they are seen; made once where they are the same every time."""
    stored = StoredImages(part.images[rows], part.labels[rows], *statistics, crop=crop, rows=rows)
    return stored if crop else TensorImages(*stored.__getitems__(range(len(stored))))
