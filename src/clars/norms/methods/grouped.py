"""Several products by one convolution call with as many times the groups of channels."""

import torch
from torch import Tensor

from clars.native import where
from clars.norms.methods import costs
from clars.norms.methods.contribution import Contribution
from clars.norms.methods.method import Method, slices
from clars.norms.methods.operands import ConvolutionOperands, convolution_backward
from clars.norms.methods.products import sum_of_products
from clars.norms.methods.sizes import Sizes


class Grouped(Method):
    """Convolutions of any kind, on any device: b examples as one with b times the groups of channels.

    Each example's channels then meet only its own output gradient. Where b groups of examples have a product each, as
    many examples as are in a group have b times the groups of channels.
    """

    name = "grouped"

    def applies(self, sizes: Sizes) -> bool:
        return bool(sizes.kernel)

    def numbers(self, sizes: Sizes) -> int:
        return sizes.weights

    def operations(self, sizes: Sizes) -> float:
        if sizes.accelerated:
            moved = costs.read(sizes) + costs.written(sizes)
            return costs.on_accelerator(sizes, sizes.operations / costs.SMALL, moved, calls=8)
        if sizes.group > 1 and where.on_processor(sizes.device):
            return costs.NEVER  # such calls take long there
        if sizes.native:
            if sizes.groups == 1:
                return costs.NEVER
            return 1.1 if sizes.positions < 1024 and sizes.channels > 1 else 1.3
        return 1 + costs.products(sizes) + (costs.CALL if costs.lays_out(sizes) else 0)

    def pieces(self, sizes: Sizes, memory: int | None) -> list[slice]:
        return slices(sizes.examples, 1, 1, sizes.group) if _one_by_one(sizes) else super().pieces(sizes, memory)

    def form(self, operands: ConvolutionOperands, sizes: Sizes, memory: int | None) -> Contribution:
        def products(piece: ConvolutionOperands) -> Tensor:
            return stacked_products(piece, sizes.group)

        return sum_of_products(products, operands, self.pieces(sizes, memory))


def stacked_products(operands: ConvolutionOperands, group: int) -> Tensor:
    """Return the contribution [groups, *weight's shape] of each group of examples to a convolution's weight gradient.

    The last group may be smaller.
    """
    group = min(group, len(operands.x))
    count, rest = divmod(len(operands.x), group)
    if rest:
        whole = count * group
        both = operands.of(slice(0, whole)), operands.of(slice(whole, None))
        return torch.cat([stacked_products(some, group) for some in both])
    if count == 1:
        return operands.gradient().unsqueeze(0)
    weight, geometry = operands.weight, operands.geometry
    shape_only = weight.new_empty(()).expand(count * len(weight), *weight.shape[1:])
    gy, x = (_side_by_side(value, count) for value in (operands.gy, operands.x))
    stacked = geometry._replace(groups=count * geometry.groups)
    return convolution_backward(gy, x, shape_only, stacked, wrt_input=False).view(count, *weight.shape)


def _side_by_side(x: Tensor, count: int) -> Tensor:
    """Return x [b, C, ...] of `count` groups of examples as [b / count, count * C, ...]."""
    return x.unflatten(0, (count, -1)).transpose(0, 1).flatten(1, 2)


def _one_by_one(sizes: Sizes) -> bool:
    """Tell whether a product is formed at a time.

    On processors, few channels are slow as one group of many; and channels that lie together in memory would have to be
    laid apart to become groups, which takes longer than the calls for large images.
    """
    few = sizes.groups == 1 and sizes.channels % 8 != 0
    return where.on_processor(sizes.device) and (few or (sizes.channels_last and sizes.positions >= 128))
