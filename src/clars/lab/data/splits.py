"""What every data set looks like to the training loop: whole batches of tensors, by index."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Self

import torch
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import Dataset

from clars.errors import DataError

Batch = tuple[Tensor, Tensor]


class Images(Dataset, ABC):
    """A map-style data set that returns whole batches: images float32 [n, c, h, w] and labels int64 [n].

    A DataLoader takes the batches as they are with a batch sampler and `collate_fn=clars.lab.data.collate`.
    """

    labels: Tensor
    """int64 [len(self)]"""
    place: tuple[int, ...] | None = None
    """Seed and epoch: the random choices for an example follow from them and its index alone. None: unseeded."""
    device: torch.device | None = None
    """Where batches are made of tensors that are held in memory; None where images are read for each batch."""

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Return the images and labels at `indices`."""

    def items(self) -> Iterable:
        """Return what `__getitems__` takes, for every image in order."""
        return range(len(self))

    def __getitem__(self, index: int) -> Batch:
        images, labels = self.__getitems__([index])
        return images[0], labels[0]


class HeldImages(Images):
    """Images whose tensors are in memory, the processor's or a GPU's. They are indexed by int64 tensors there."""

    @property
    def device(self) -> torch.device:
        return self.labels.device

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self._tensors().values())

    def to(self, device: torch.device) -> Self:
        """Return the same images, held in the memory of `device`."""
        moved = copy(self)
        vars(moved).update({name: tensor.to(device) for name, tensor in self._tensors().items()})
        return moved

    def items(self) -> Tensor:
        return torch.arange(len(self), device=self.device)

    def _tensors(self) -> dict[str, Tensor]:
        return {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}


def collate(batch: Batch) -> Batch:
    """Return the batch: `Images.__getitems__` has put it together already."""
    return batch


@dataclass(frozen=True)
class Splits:
    """What to train on and what to measure accuracy on.

    `mean` and `std` of each channel turn pixels in [0, 1] into what the images hold.
    """

    train: Images
    test: Images
    num_classes: int
    class_names: tuple[str, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def hold_out(labels: Tensor, fraction: float, key: str) -> tuple[Tensor, Tensor]:
    """Split the indices of `labels` [n] into those kept and the `fraction` held out, class by class.

    Returns two sorted int64 tensors, the same in every call.
    Raises DataError, naming the recipe's `key`, if a class cannot be on both sides.
    """
    try:
        kept, held = train_test_split(torch.arange(len(labels)), test_size=fraction, stratify=labels, random_state=0)
    except ValueError as error:
        raise DataError(
            f"{key}={fraction}: of {len(labels)} examples this share cannot be held out"
            f" with every class on both sides: {error}"
        ) from error
    return kept.sort().values, held.sort().values
