"""What the kernels in Triton compute, by torch's own operators: for devices without them, and to hold them against.

Slow: each example, or group of examples, is a call of its own. See the kernels for arguments and results.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from clars.precision import wide

Sizes = tuple[int, int]


def fused_products(
    gy: Tensor,
    x: Tensor,
    kernel: Sizes,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    groups: int = 1,
    group: int = 1,
) -> tuple[Tensor, Tensor]:
    """Return the weight gradient summed over examples, and the squared norms of the sums over each group of examples.

    Both are float32, or float64 where gy and x are. See `clars.native.triton.fused_products`.
    """
    total, squares = None, []
    for own in _gradients(gy, x, kernel, stride, padding, dilation, groups, group):
        total = own if total is None else total + own
        squares.append(own.square().sum())
    return total, torch.stack(squares)


def fused_squares(
    gy: Tensor,
    x: Tensor,
    kernel: Sizes,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    groups: int = 1,
    group: int = 1,
) -> Tensor:
    """Return the squared norms alone. See `clars.native.triton.fused_products`."""
    own = _gradients(gy, x, kernel, stride, padding, dilation, groups, group)
    return torch.stack([gradient.square().sum() for gradient in own])


def gram_squares(
    gy: Tensor, x: Tensor, kernel: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes, group: int = 1
) -> Tensor:
    """Return the squared norms of each group of examples. See `clars.native.triton.gram`."""
    return fused_squares(gy, x, kernel, stride, padding, dilation, 1, group)


def depthwise_products(
    gy: Tensor, x: Tensor, kernel: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes, group: int = 1
) -> tuple[Tensor, Tensor]:
    """Return the same as `fused_products`, of a depthwise convolution. See `clars.native.triton.depthwise`."""
    return fused_products(gy, x, kernel, stride, padding, dilation, x.shape[1], group)


def _gradients(
    gy: Tensor,
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    group: int,
) -> Iterator[Tensor]:
    """Yield the weight gradient of each group of examples, in float32 at least."""
    weight = x.new_empty((gy.shape[1], x.shape[1] // groups, *kernel), dtype=wide(x.dtype))
    for gy_some, x_some in zip(gy.split(group), x.split(group)):
        yield torch.ops.aten.convolution_backward(
            gy_some.to(weight.dtype), x_some.to(weight.dtype), weight, None, stride, padding, dilation, False, (0, 0),
            groups, (False, True, False),
        )[1]  # fmt: skip
