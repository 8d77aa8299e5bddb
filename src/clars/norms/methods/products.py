"""Products of output gradients and inputs, an example's or a group's: their sum is the weight gradient, their norms are
wanted.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from clars.native import operators, where
from clars.norms.methods.contribution import Contribution
from clars.norms.methods.groups import merged
from clars.norms.methods.method import Operands
from clars.precision import wide

# A product of fewer operations than this is faster in a batch of products than by a call of its own.
SMALL_PRODUCT = 4e6


def sum_of_products(
    products_of: Callable[[Operands], Tensor], operands: Operands, pieces: Sequence[slice]
) -> Contribution:
    """Form the examples' or groups' weight gradients a piece at a time; return their sum and their squared norms.

    `products_of` returns the weight gradients [b, P, ...] of the b examples, or groups, of a piece.
    """
    gradient, squares = None, []
    for piece in pieces:
        products = products_of(operands.of(piece) if len(pieces) > 1 else operands)
        squares.append(squared_norms(products))
        gradient = _add_examples(gradient, products)
    return Contribution(gradient.to(operands.gy.dtype), squares[0] if len(squares) == 1 else torch.cat(squares))


def _add_examples(total: Tensor | None, products: Tensor) -> Tensor:
    """Add products [b, ...] over their examples to `total`, in float32 at least; None is an empty sum."""
    dtype = wide(products.dtype)
    part = products.sum(0, dtype=dtype) if len(products) > 1 else products[0].to(dtype)
    return part if total is None else total.add_(part)


def matrices(operands: Operands, group: int) -> tuple[Tensor, Tensor]:
    """Return output gradients [b, P, T] and what the weight sees [b, D, T], T over all positions of each group."""
    outputs, windows = operands.outputs(), operands.windows()
    return merged(outputs.mT, group).mT, merged(windows.mT, group).mT


def each_product(operands: Operands, group: int) -> Tensor:
    """Return the contribution [groups, P, D] of each group of examples to a linear layer's weight gradient.

    The last group may be smaller.
    """
    group = min(group, len(operands.x))
    whole = len(operands.x) // group * group
    found = matrix_products(*matrices(operands.of(slice(0, whole)), group))
    if whole == len(operands.x):
        return found
    rest = operands.of(slice(whole, None))
    return torch.cat([found, matrix_products(*matrices(rest, len(rest.x)))])


def matrix_products(gy: Tensor, x: Tensor) -> Tensor:
    """Return gy_i x_i^T [b, P, D] for each example i of gy [b, P, T] and x [b, D, T].

    On processors, the library behind torch's convolutions (oneDNN) can multiply float32 matrices faster than the one
    behind `torch.bmm`, a matrix at a time; by how much depends on the processor.
    """
    if gy.shape[1] == 1:  # an output each, as in depthwise convolutions
        return torch.linalg.vecdot(x, gy).unsqueeze(1)
    operations = 2 * gy.shape[1] * gy.shape[2] * x.shape[1]
    if operations < SMALL_PRODUCT or not _has_onednn(gy) or _long_transposed(gy):
        return torch.bmm(gy, x.transpose(1, 2))
    x = dense(x)
    products = [
        torch.ops.mkldnn._linear_pointwise(one_gy, one_x, None, "none", [], "")
        for one_gy, one_x in zip(gy.unbind(), x.unbind())
    ]
    return torch.stack(products) if len(products) > 1 else products[0].unsqueeze(0)


def dense(x: Tensor) -> Tensor:
    """Return x [b, D, T] without gaps between its rows, which make oneDNN's product a thousand times slower."""
    by_rows = x.stride(2) == 1 and x.stride(1) == x.shape[2]
    return x if by_rows or (x.stride(1) == 1 and x.stride(2) == x.shape[1]) else x.contiguous()


def _long_transposed(gy: Tensor) -> bool:
    """Tell whether many positions, of channels that lie together, would be laid apart by one thread among several."""
    return gy.stride(2) != 1 and gy.shape[2] >= 512 and where.threads() > 1


def _has_onednn(tensor: Tensor) -> bool:
    if operators.is_suspended():  # torch.compile takes this operator with a constant as its second matrix only
        return False
    return where.on_processor(tensor) and tensor.dtype == torch.float32 and _onednn()


def _onednn() -> bool:
    available = torch.backends.mkldnn.enabled and torch.backends.mkldnn.is_available()
    return available and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def squared_norms(tensor: Tensor) -> Tensor:
    """Return the squared 2-norm of each example of `tensor` [B, ...] as [B], accumulated in float32 at least.

    Norms of rows first and of the rows' norms then: a single long sum in float32 would lose two digits.
    """
    if tensor.dim() > 2:
        rows = torch.linalg.vector_norm(tensor.flatten(2), dim=2, dtype=wide(tensor.dtype))
    else:
        rows = tensor.reshape(len(tensor), -1).to(wide(tensor.dtype))
    return torch.linalg.vecdot(rows, rows)
