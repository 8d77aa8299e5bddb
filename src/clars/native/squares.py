"""Squared norms of many tensors at once."""

from collections.abc import Sequence

import torch
from torch import Tensor

from clars.native import where
from clars.native.operators import kernel, loaded

# Numbers of a tensor that a processor handles at a time: several tensors' blocks then stay in its cache from the first
# operation to the last, instead of passing through memory once for each.
BLOCK = 2**17


def pieces(tensor: Tensor) -> tuple[Tensor, ...]:
    """Return views that make up `tensor`: blocks of it on the CPU, itself elsewhere or where it is not contiguous."""
    if not where.on_processor(tensor) or tensor.numel() <= BLOCK or not tensor.is_contiguous():
        return (tensor,)
    return tensor.view(-1).split(BLOCK)


def squared_norms(tensors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """Return the squared 2-norms of the tensors, accumulated in `dtype` at least.

    Piece by piece, which is also the more accurate: one long sum in float32 would lose two digits.
    """
    if dtype == torch.float32 and loaded() and kernel("dense")(tensors):
        return kernel("norms")(tensors).square()
    cut = [pieces(tensor.contiguous() if where.on_processor(tensor) else tensor) for tensor in tensors]
    squares = torch.stack(torch._foreach_norm([piece for each in cut for piece in each], 2, dtype)).square()
    if len(squares) == len(tensors):
        return squares
    return torch.stack([each.sum() for each in squares.split([len(each) for each in cut])])
