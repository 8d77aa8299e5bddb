"""Squared norms of weight gradients without forming them, from inner products between positions.

||G X^T||^2 = sum over pairs of positions (s, t) of (G^T G)[s, t] * (X^T X)[s, t], for G [P, T] and X [D, T]. It costs
2 T^2 (P + D) operations and wins where there are few positions and many weights: the last stages of a network.
"""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from clars import native
from clars.native import device
from clars.norms.methods import costs
from clars.norms.methods.contribution import Contribution
from clars.norms.methods.method import Method, Operands
from clars.norms.methods.operands import ConvolutionOperands
from clars.norms.methods.products import dense, matrices, matrix_products, squared_norms
from clars.norms.methods.sizes import Sizes
from clars.precision import wide


class Gram(Method):
    """The ordinary weight gradient, and the norms from inner products between positions."""

    name = "gram"

    def applies(self, sizes: Sizes) -> bool:
        if sizes.group > 1:
            few = sizes.summed * (sizes.inputs + sizes.outputs) <= 2 * sizes.inputs * sizes.outputs
            return sizes.pointwise and few  # else it takes more than the products, in time and memory
        return sizes.groups == 1 and (sizes.bare or len(sizes.kernel) == 2 or set(sizes.stride) == {1})

    def numbers(self, sizes: Sizes) -> int:
        if self._in_one_kernel(sizes):
            return 1
        if not sizes.shifted:
            return 2 * sizes.summed**2 + sizes.windows
        seen = sizes.phase_positions
        phase = seen**2 + (seen * sizes.channels if sizes.phases > 1 else 0)
        return sizes.positions**2 + phase + max(seen, sizes.positions) ** 2

    def operations(self, sizes: Sizes) -> float:
        if sizes.accelerated:
            return self._on_accelerator(sizes)
        shared = sizes.summed**2 * sizes.inputs
        if sizes.shifted:
            shared = sizes.phases * sizes.phase_positions**2 * sizes.channels
        measured = sizes.products // sizes.blocks
        return 1 + 2 * measured * (shared + sizes.summed**2 * sizes.outputs) / sizes.operations

    def _on_accelerator(self, sizes: Sizes) -> float:
        # Of each pair of positions one order is enough, so that an operation stands for two.
        taken = sizes.products * sizes.summed**2 * (sizes.inputs + sizes.outputs)
        seconds, moved = taken / costs.GRAM, 2 * costs.read(sizes)
        if not self._in_one_kernel(sizes):
            moved += 4 * sizes.products * self.numbers(sizes) * sizes.dtype.itemsize
        return costs.on_accelerator(sizes, sizes.operations / costs.LIBRARY + seconds, moved, calls=3)

    @staticmethod
    def _in_one_kernel(sizes: Sizes) -> bool:
        return sizes.accelerated and sizes.planar

    def is_native(self, sizes: Sizes) -> bool:
        return sizes.native and (sizes.pointwise or (sizes.groups == 1 and len(sizes.kernel) == 2))

    def form(self, operands: Operands, sizes: Sizes, memory: int | None) -> Contribution:
        if self.is_native(sizes):
            return Contribution(None, self._by_kernel(operands, sizes, self.at_once(sizes, memory)))
        if self._in_one_kernel(sizes):
            gy, x, (*where_seen, _), kernel = operands.images()
            return Contribution(None, device.gram_squares(gy, x, kernel, *where_seen, sizes.group))
        pieces = [operands.of(piece) for piece in self.pieces(sizes, memory)]
        if sizes.bare or set(sizes.stride) != {1}:
            squares = [gram_squares(*matrices(piece, sizes.group)) for piece in pieces]
        else:
            squares = [inner(gram(piece.outputs()), _shifted(piece)) for piece in pieces]
        return Contribution(None, torch.cat(squares))

    @staticmethod
    def _by_kernel(operands: Operands, sizes: Sizes, most: int) -> Tensor:
        if sizes.bare:
            return native.kernel("gram_squares")(operands.outputs(), dense(operands.windows()), most, sizes.group)
        stride, padding, dilation, _ = operands.geometry
        of_windows = native.kernel("window_gram_squares")
        return of_windows(operands.gy, operands.x, operands.kernel, stride, padding, dilation, most)


def _shifted(operands: ConvolutionOperands) -> Tensor:
    _, padding, dilation, _ = operands.geometry
    return window_gram(operands.x, operands.kernel, padding, dilation, operands.gy.shape[2:])


def gram(x: Tensor) -> Tensor:
    """Return the inner products [b, T, T] between the positions of x [b, N, T], in float32 at least."""
    positions_first = x.to(wide(x.dtype)).transpose(1, 2)
    return matrix_products(positions_first, positions_first)


def gram_squares(gy: Tensor, x: Tensor) -> Tensor:
    """Return ||gy_i x_i^T||^2 for each example i of gy [b, P, T] and x [b, D, T]."""
    if gy.shape[2] == 1:
        return squared_norms(gy) * squared_norms(x)
    return inner(gram(gy), gram(x))


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Return the sums of the elements of a * b, per example, never negative."""
    return torch.linalg.vecdot(a.flatten(1), b.flatten(1)).clamp_min(0)


def window_gram(
    x: Tensor, kernel: Sequence[int], padding: Sequence[int], dilation: Sequence[int], size: Sequence[int]
) -> Tensor:
    """Return the inner products [b, T, T] between the windows that a convolution of stride 1 sees at its T positions.

    Two windows' inner product is the sum, over the taps of the kernel, of inner products between single positions of
    x [b, C, *input size], both shifted by the tap. So the positions' gram is formed once and summed along its
    diagonals, an axis at a time: fewer operations by the number of taps than with the windows laid out.

    Args:
        size: the convolution's output size, with prod(size) = T.
    """
    axes = len(kernel)
    total = gram(x.flatten(2)).view(len(x), *x.shape[2:], *x.shape[2:])
    for axis in range(axes):
        if kernel[axis] > 1 or padding[axis]:
            total = _sum_diagonals(total, 1 + axis, 1 + axes + axis, kernel[axis], padding[axis], dilation[axis], size)
    return total.reshape(len(x), prod(size), prod(size))


def _sum_diagonals(
    total: Tensor, first: int, second: int, taps: int, padding: int, dilation: int, size: Sequence[int]
) -> Tensor:
    """Sum over taps the elements of `total` whose two coordinates, `first` and `second`, are shifted by the tap."""
    length, shape = size[first - 1], list(total.shape)
    before = shape[first]
    shape[first] = shape[second] = length
    summed = total.new_zeros(shape)
    for tap in range(taps):
        shift = tap * dilation - padding
        start, stop = max(0, -shift), min(length, before - shift)
        if start < stop:
            moved = total.narrow(first, start + shift, stop - start).narrow(second, start + shift, stop - start)
            summed.narrow(first, start, stop - start).narrow(second, start, stop - start).add_(moved)
    return summed
