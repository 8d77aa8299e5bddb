"""Which examples each process takes, in micro-batches, so that all together form the recipe's global batches."""

from collections.abc import Iterator
from itertools import islice

import torch
from torch.utils.data import Sampler

from clars.errors import UserError
from clars.lab.data import Images, StreamedImages, batched
from clars.lab.data.stream import Cell
from clars.lab.launching.division import Division


class GlobalBatches(Sampler):
    """Micro-batches of one process, in such an order that the processes together form the same global batches.

    The order of an epoch depends on seed and epoch alone: not on processes, micro-batches or where a run resumed.
    Examples that fill no global batch are left out of the epoch. Set `epoch` before each, and `first_step` to the
    number of its global batches that are behind the run. With a device the indices are tensors there, and those of an
    epoch go to it together; without one they are lists.
    """

    def __init__(
        self, examples: int, division: Division, rank: int, seed: int, device: torch.device | None = None
    ) -> None:
        if division.global_batch > examples:
            raise UserError(
                f"batch_size={division.global_batch} is larger than the training set of {examples} examples. "
                f"Choose at most batch_size={examples}."
            )
        self.examples, self.division, self.rank, self.seed = examples, division, rank, seed
        self.device = device
        self.epoch = self.first_step = 0

    @property
    def steps(self) -> int:
        """Optimizer steps in an epoch."""
        return self.examples // self.division.global_batch

    def __len__(self) -> int:
        return (self.steps - self.first_step) * self.division.accumulation

    def __iter__(self) -> Iterator[list[int] | torch.Tensor]:
        generator = torch.Generator().manual_seed(epoch_seed(self.seed, self.epoch))
        order = torch.randperm(self.examples, generator=generator)
        cut = self.division
        order = order[: self.steps * cut.global_batch].view(self.steps, cut.accumulation, cut.world_size, -1)
        own = order[self.first_step :, :, self.rank].flatten(0, 1)
        yield from own.tolist() if self.device is None else own.to(self.device)


class StreamedBatches(GlobalBatches):
    """The same of a stream: each process reads it whole and keeps the examples of its own micro-batches."""

    def __init__(self, images: StreamedImages, division: Division, rank: int, seed: int) -> None:
        super().__init__(len(images), division, rank, seed)
        self.images = images

    def __iter__(self) -> Iterator[list[Cell]]:
        cut = self.division
        cells = self.images.shuffled(epoch_seed(self.seed, self.epoch), self.first_step * cut.global_batch)
        parts = batched(cells, cut.micro_batch)
        yield from islice(parts, self.rank, len(self) * cut.world_size, cut.world_size)


def batches_of(images: Images, division: Division, rank: int, seed: int) -> GlobalBatches:
    """Return the batches of images, of whatever kind they are."""
    if isinstance(images, StreamedImages):
        return StreamedBatches(images, division, rank, seed)
    return GlobalBatches(len(images), division, rank, seed, images.device)


def epoch_seed(seed: int, epoch: int) -> int:
    """Return the seed of one epoch of one run; distinct for all runs with fewer than 100,003 epochs."""
    return seed * 100_003 + epoch
