"""Characters drawn from the fonts of matplotlib: 65,536 images to train on, without a download.

36 classes, the figures and capitals. The test split is drawn from families of fonts that training never sees.
"""

from typing import Literal

import torch
from torch import Tensor

from clars.errors import DataError
from clars.lab.data.glyphs import draw, store
from clars.lab.data.glyphs.fonts import CHARACTERS
from clars.lab.data.memory import StoredImages, resize
from clars.lab.data.splits import Splits, hold_out
from clars.lab.data.transforms import per_channel
from clars.lab.recipes import schema


def load(data: schema.Data, evaluation: Literal["test", "validation"]) -> Splits:
    """Return 65,536 training images, or the first `data.train_examples`, and 9,216 test images.

    For evaluation="validation" the training images alone, with a share held out; with `data.hold_out` that share is
    left out of training for the test too. Pixels lie in [0, 1] before
    `data.mean` and `data.std` are applied; without them the training images get mean 0 and standard deviation 1.
    Raises DataError for missing fonts, for more examples than there are, and for augmentation, which could turn a
    character into another.
    """
    if data.augmentation != "none":
        raise DataError(f"data.augmentation={data.augmentation!r}: glyphs are not augmented. Use 'none'.")
    count = data.train_examples or store.COUNTS["train"]
    if count > store.COUNTS["train"]:
        raise DataError(f"data.train_examples={count}: there are {store.COUNTS['train']} glyphs to train on.")
    stored = store.read_or_draw()
    train, test = (
        (part, torch.from_numpy(draw.labels(len(part)))) for part in (stored["train"][:count], stored["test"])
    )
    if evaluation == "validation" or data.hold_out:
        pixels, labels = train
        kept, held = hold_out(labels, data.validation_fraction, "data.validation_fraction")
        train, validation = ((pixels[rows], labels[rows]) for rows in (kept, held))
        test = validation if evaluation == "validation" else test
    found = _statistics(train[0])
    mean, std = (
        per_channel(f"data.{key}", getattr(data, key), data.channels) or [value] * data.channels
        for key, value in zip(("mean", "std"), found)
    )
    splits = (
        StoredImages(resize(part.unsqueeze(1), data.image_size), labels, mean, std) for part, labels in (train, test)
    )
    return Splits(*splits, len(CHARACTERS), tuple(CHARACTERS), tuple(mean), tuple(std))


def _statistics(pixels: Tensor) -> tuple[float, float]:
    """Return mean and standard deviation of bytes, on the scale of [0, 1]."""
    counts = pixels.flatten().bincount(minlength=256).double()
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = (counts @ values) / counts.sum()
    return mean.item(), ((counts @ (values - mean).square()) / counts.sum()).sqrt().item()
