"""From images and the indices of batches to batches on the device of training, without holding it up."""

import warnings
from collections.abc import Iterable, Iterator

import torch
from torch.utils.data import DataLoader, Dataset

from clars.lab.data import Batch, HeldImages, Images, collate
from clars.lab.launching import devices
from clars.lab.loading.prefetch import moved

MOST = 8  # workers that `auto` takes


def workers(setting: int | str, images: Images, processes: int, device: torch.device) -> int:
    """Return how many worker processes the recipe's `data.workers` stands for.

    `auto` is one for each core that this process may use, shared by the training processes of this machine, at most
    MOST; none for images in memory.

    Args:
        setting: a number, or auto.
        images: what is loaded.
        processes: of training, on this machine.
        device: that trains.

    Warns:
        UserWarning: a number has no effect, as the images lie on the device already.
    """
    if setting == "auto":
        return 0 if isinstance(images, HeldImages) else min(MOST, devices.cores() // processes)
    if setting and _lie_on(images, device):
        warnings.warn(
            f"data.workers = {setting} has no effect with images in memory and training on the same device, {device}.",
            stacklevel=2,
        )
        return 0
    return setting


class Loader:
    """Batches of images on a device, each time it is iterated over; `batches` says of which.

    Images that are held on the device are indexed there, without workers. Others go through a `DataLoader`, whose
    workers stay for the next iteration, from memory that is pinned for a GPU, and are moved by `prefetch.moved`.

    Args:
        images: what to load.
        batches: yields what `images.__getitems__` takes.
        device: where the batches are wanted.
        workers: processes that load; 0 for this one.
        prefetch: batches that each worker prepares ahead.
    """

    def __init__(
        self, images: Images, batches: Iterable, device: torch.device, workers: int = 0, prefetch: int = 2
    ) -> None:
        self.images, self.batches, self.device = images, batches, device
        self._loader = None
        if not _lie_on(images, device):
            self._loader = DataLoader(
                _Placed(images),
                batch_sampler=_WithPlace(images, batches),
                collate_fn=collate,
                num_workers=workers,
                prefetch_factor=prefetch if workers else None,
                persistent_workers=workers > 0,
                pin_memory=device.type == "cuda",
            )

    def __iter__(self) -> Iterator[Batch]:
        if self._loader is None:
            return (self.images.__getitems__(indices) for indices in self.batches)
        return moved(self._loader, self.device)

    def close(self) -> None:
        """Let go of the workers."""
        self._loader = None


def _lie_on(images: Images, device: torch.device) -> bool:
    return images.device is not None and images.device.type == device.type


class _Placed(Dataset):
    """Images in workers that outlive an epoch: where the run is comes with the indices of each batch."""

    def __init__(self, images: Images) -> None:
        self.images = images

    def __getitems__(self, item: tuple) -> Batch:
        self.images.place, indices = item
        return self.images.__getitems__(indices)


class _WithPlace:
    """What `batches` yields, each with the place that `images` have then."""

    def __init__(self, images: Images, batches: Iterable) -> None:
        self.images, self.batches = images, batches

    def __iter__(self) -> Iterator[tuple]:
        return ((self.images.place, indices) for indices in self.batches)
