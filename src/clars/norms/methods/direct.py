"""Each product by kernels of our own, without a call of a library: small convolutions, and depthwise ones."""

from clars import native
from clars.native import most_workers
from clars.norms.methods import costs
from clars.norms.methods.contribution import Contribution
from clars.norms.methods.method import Method
from clars.norms.methods.operands import ConvolutionOperands
from clars.norms.methods.sizes import Sizes

LANES = 16  # images of a depthwise convolution that are padded and laid out at a time, in a vector's lanes


class Direct(Method):
    """Convolutions of two dimensions, by the C++ kernels on processors."""

    name = "direct"

    def applies(self, sizes: Sizes) -> bool:
        if not sizes.native or len(sizes.kernel) != 2:
            return False
        return not sizes.few if sizes.groups == 1 else sizes.channels == 1

    def numbers(self, sizes: Sizes) -> int:
        if sizes.groups > 1:
            return 2 * sizes.weights + LANES * (sizes.positions + 2 * sizes.input_positions)
        return 2 * sizes.weights + sizes.positions * sizes.outputs + sizes.input_positions * sizes.channels

    def operations(self, sizes: Sizes) -> float:
        if sizes.groups > 1:
            return 1.1
        return 1 + costs.native_calls(sizes) if costs.is_small(sizes) and not sizes.pointwise else costs.NEVER

    def at_once(self, sizes: Sizes, memory: int | None) -> int:
        return min(sizes.examples, sizes.threads, most_workers(self.bytes(sizes), memory))

    def is_native(self, sizes: Sizes) -> bool:
        return sizes.native

    def form(self, operands: ConvolutionOperands, sizes: Sizes, memory: int | None) -> Contribution:
        kernel = native.kernel("depthwise_products" if sizes.groups > 1 else "small_conv_products")
        stride, padding, dilation, _ = operands.geometry
        most = self.at_once(sizes, memory)
        return Contribution(
            *kernel(operands.gy, operands.x, operands.kernel, stride, padding, dilation, most, sizes.group)
        )
