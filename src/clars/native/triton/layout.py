"""How tensors lie in memory, as far as kernels care, and what a call of them is planned by."""

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

Layout = torch.memory_format  # that an operand is copied to first


class Form(NamedTuple):
    """How a tensor [B, C, ...] lies in memory, and of what type and on which device it is."""

    shape: torch.Size
    stride: tuple[int, ...]
    beginning: int  # in its storage, modulo 16
    dtype: torch.dtype
    device: torch.device

    @property
    def is_near(self) -> bool:
        """Whether 32 bits tell how far apart numbers of one example lie.

        Kernels for convolutions reckon in 64 bits from example to example, and in 32 within one.
        """
        return sum((size - 1) * stride for size, stride in zip(self.shape[1:], self.stride[1:])) < 2**31

    @property
    def strides(self) -> tuple[int, ...]:
        """The strides, 0 for dimensions of size 1.

        Theirs may be any number, and a kernel looks for multiples of 16.
        """
        return tuple(stride if size > 1 else 0 for size, stride in zip(self.shape, self.stride))

    @property
    def channels_together(self) -> bool:
        """Whether channels are next to each other in memory."""
        return self.stride[1] == 1

    @property
    def together(self) -> Layout | None:
        """What to copy to, such that channels are next to each other in memory, and examples near; None: nothing."""
        return None if self.channels_together and self.is_near else torch.channels_last

    @property
    def position_stride(self) -> int | None:
        """The stride from one position to the next, row after row; None where there is no such one."""
        apart = [(size, stride) for size, stride in zip(self.shape[2:], self.stride[2:]) if size != 1]
        if any(outer != size * stride for (_, outer), (size, stride) in pairwise(apart)):
            return None
        return apart[-1][1] if apart else 0

    def aligned(self, channels: int) -> bool:
        """Tell whether a kernel can read 16 channels at once wherever a group of so many begins, of [B, C, H, W]."""
        apart = (*self.strides[::2], self.strides[3], channels, self.beginning)
        return self.channels_together and all(step % 16 == 0 for step in apart)

    def copied(self, layout: Layout | None) -> "Form":
        """Return the form of what `copied` makes of a tensor of this one."""
        if layout is None:
            return self
        dense = torch.empty(self.shape, dtype=self.dtype, device="meta", memory_format=layout)
        return form(dense)._replace(device=self.device)


def form(tensor: Tensor) -> Form:
    """Return how a tensor lies in memory."""
    return Form(tensor.shape, tensor.stride(), tensor.storage_offset() % 16, tensor.dtype, tensor.device)


def copied(tensor: Tensor, layout: Layout | None) -> Tensor:
    """Return a dense copy of a tensor in a layout, or the tensor where that is None."""
    return tensor if layout is None else tensor.contiguous(memory_format=layout)
