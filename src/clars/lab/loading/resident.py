"""Data sets that are held in the memory of the device that trains."""

import gc
from dataclasses import replace

import torch

from clars.errors import UserError
from clars.lab.data import Splits

GIB = 2**30


def on_device(splits: Splits, device: torch.device) -> Splits:
    """Return the splits, whose images are in memory, with that of `device` in the place of the processor's.

    Raises:
        UserError: they do not fit beside what the device holds already.
    """
    needed, free = splits.train.nbytes + splits.test.nbytes, _free(device)
    if free is not None and needed > free:
        raise UserError(
            f"data.in_memory='device': the images take {needed / GIB:.2f} GiB, and {device} has {free / GIB:.2f} GiB "
            "free. Use data.in_memory=host, which holds them in the memory of the machine."
        )
    return replace(splits, train=splits.train.to(device), test=splits.test.to(device))


def _free(device: torch.device) -> int | None:
    """Return the free bytes of a GPU, without what runs before this one have left; None for the processor."""
    if device.type != "cuda":
        return None
    gc.collect()
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]
