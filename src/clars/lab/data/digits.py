"""The 1,797 scanned 8x8 digits that scikit-learn carries: real images without a download."""

from collections.abc import Sequence
from typing import Literal

import torch
from sklearn.datasets import load_digits
from torch import Tensor

from clars.errors import DataError
from clars.lab.data.memory import resize
from clars.lab.data.splits import Batch, HeldImages, Splits, hold_out
from clars.lab.data.transforms import per_channel
from clars.lab.recipes import schema

TEST_FRACTION = 0.2


class TensorImages(HeldImages):
    """Images held in memory: float32 [n, c, h, w], with labels int64 [n]."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        index = torch.as_tensor(indices, device=self.device)
        return self.images[index], self.labels[index]


def load(data: schema.Data, evaluation: Literal["test", "validation"]) -> Splits:
    """Return 1,437 training and 360 test digits, or the training digits alone with a share held out.

    With `data.hold_out` that share is left out of training for the test too.

    Pixels lie in [0, 1] before `data.mean` and `data.std` are applied; without them the training images get
    mean 0 and standard deviation 1. Raises DataError for augmentation, which could turn a digit into another.
    """
    if data.augmentation != "none":
        raise DataError(f"data.augmentation={data.augmentation!r}: digits are not augmented. Use 'none'.")
    pixels, targets = load_digits(return_X_y=True)
    images = resize(torch.from_numpy(pixels).float().view(-1, 1, 8, 8) / 16, data.image_size)
    labels = torch.from_numpy(targets).long()
    train, test = hold_out(labels, TEST_FRACTION, "test fraction")
    if evaluation == "validation" or data.hold_out:
        kept, held = hold_out(labels[train], data.validation_fraction, "data.validation_fraction")
        train, test = train[kept], train[held] if evaluation == "validation" else test
    mean, std = _statistics(images[train], data)
    images = (images.expand(-1, data.channels, -1, -1) - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
    splits = (TensorImages(images[rows], labels[rows]) for rows in (train, test))
    return Splits(*splits, 10, tuple("0123456789"), tuple(mean.tolist()), tuple(std.tolist()))


def _statistics(images: Tensor, data: schema.Data) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation per channel: the recipe's, or those of the training images."""
    channels = data.channels
    mean = per_channel("data.mean", data.mean, channels) or [images.mean().item()] * channels
    std = per_channel("data.std", data.std, channels) or [images.std().item()] * channels
    return torch.tensor(mean), torch.tensor(std)
