"""The products of several examples by one convolution call with as many times the groups."""

from torch import Tensor

from clars.native import where
from clars.norms.methods import costs
from clars.norms.methods.contribution import Contribution
from clars.norms.methods.method import Method, slices
from clars.norms.methods.operands import ConvolutionOperands, convolution_backward
from clars.norms.methods.products import sum_of_products
from clars.norms.methods.sizes import Sizes


class Grouped(Method):
    """Convolutions of any kind, on any device: b examples as one with b times the groups.

    Each example's channels then meet only its own output gradient.
    """

    name = "grouped"

    def applies(self, sizes: Sizes) -> bool:
        return bool(sizes.kernel)

    def numbers(self, sizes: Sizes) -> int:
        return sizes.weights

    def operations(self, sizes: Sizes) -> float:
        if sizes.native:
            if sizes.groups == 1:
                return costs.NEVER
            return 1.1 if sizes.positions < 1024 and sizes.channels > 1 else 1.3
        return 1 + costs.products(sizes) + (costs.CALL if costs.lays_out(sizes) else 0)

    def pieces(self, sizes: Sizes, memory: int | None) -> list[slice]:
        return slices(sizes.examples, 1, 1) if _one_by_one(sizes) else super().pieces(sizes, memory)

    def form(self, operands: ConvolutionOperands, sizes: Sizes, memory: int | None) -> Contribution:
        weight, geometry = operands.weight, operands.geometry

        def products(piece: ConvolutionOperands) -> Tensor:
            examples = len(piece.x)
            if examples == 1:
                return piece.gradient().unsqueeze(0)
            shape_only = weight.new_empty(()).expand(examples * len(weight), *weight.shape[1:])
            one_gy, one_x = (value.reshape(1, -1, *value.shape[2:]) for value in (piece.gy, piece.x))
            stacked = geometry._replace(groups=examples * geometry.groups)
            found = convolution_backward(one_gy, one_x, shape_only, stacked, wrt_input=False)
            return found.view(examples, *weight.shape)

        return sum_of_products(products, operands, self.pieces(sizes, memory))


def _one_by_one(sizes: Sizes) -> bool:
    """Tell whether an example is taken at a time.

    On processors, few channels are slow as one group of many; and channels that lie together in memory would have to be
    laid apart to become groups, which takes longer than the calls for large images.
    """
    few = sizes.groups == 1 and sizes.channels % 8 != 0
    return where.on_processor(sizes.device) and (few or (sizes.channels_last and sizes.positions >= 128))
