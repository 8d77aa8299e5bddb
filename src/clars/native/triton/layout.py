"""How tensors [B, C, H, W] lie in memory, as far as kernels care."""

import torch
from torch import Tensor


def near(tensor: Tensor) -> Tensor:
    """Return `tensor`, or a dense copy where numbers of one example lie so far apart that 32 bits do not tell how far.

    Kernels reckon in 64 bits from example to example, and in 32 within one.
    """
    apart = sum((size - 1) * stride for size, stride in zip(tensor.shape[1:], tensor.stride()[1:]))
    return tensor if apart < 2**31 else tensor.contiguous()


def strides(tensor: Tensor) -> tuple[int, ...]:
    """Return the strides, 0 for dimensions of size 1.

    Theirs may be any number, and a kernel looks for multiples of 16.
    """
    return tuple(stride if size > 1 else 0 for size, stride in zip(tensor.shape, tensor.stride()))


def channels_together(tensor: Tensor) -> bool:
    """Tell whether channels are next to each other in memory."""
    return tensor.stride(1) == 1


def with_channels_together(tensor: Tensor) -> Tensor:
    """Return `tensor`, or a copy, such that channels are next to each other in memory, and examples `near`."""
    return near(tensor if channels_together(tensor) else tensor.contiguous(memory_format=torch.channels_last))


def aligned(tensor: Tensor, channels: int) -> bool:
    """Tell whether a kernel can read 16 channels at once wherever a group of so many begins."""
    apart = (*strides(tensor)[::2], strides(tensor)[3], channels, tensor.storage_offset())
    return channels_together(tensor) and all(step % 16 == 0 for step in apart)


def position_stride(tensor: Tensor) -> int | None:
    """Return the stride from one position to the next, row after row; None where there is no such one."""
    down, across = tensor.stride()[2:]
    height, width = tensor.shape[2:]
    if width == 1:
        return down if height > 1 else 0
    return across if height == 1 or down == width * across else None
