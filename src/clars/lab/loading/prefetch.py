"""Moving batches to the device. To a GPU, the next one goes while the present one is computed with."""

from collections.abc import Iterable, Iterator

import torch

from clars.lab.data import Batch


def moved(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Yield the batches on `device`.

    To a GPU they are copied on a stream of their own, one ahead, which overlaps where they come from pinned memory.
    accelerate's and torch's loaders copy on the stream that computes, in turn with it.
    """
    if device.type != "cuda":
        return (_copied(batch, device) for batch in batches)
    return _ahead(batches, device)


def _ahead(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    side, ready = torch.cuda.Stream(device), None
    for batch in batches:
        with torch.cuda.stream(side):
            copied = _copied(batch, device)
            arrived = side.record_event()
        if ready is not None:
            yield _received(*ready, device)
        ready = copied, arrived
    if ready is not None:
        yield _received(*ready, device)


def _received(batch: Batch, arrived: torch.cuda.Event, device: torch.device) -> Batch:
    """Have the computing stream wait for this batch alone, and its memory for the computing stream."""
    computing = torch.cuda.current_stream(device)
    computing.wait_event(arrived)
    for part in batch:
        part.record_stream(computing)
    return batch


def _copied(batch: Batch, device: torch.device) -> Batch:
    images, labels = batch
    return images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
