"""Each product by a call of the convolution's own backward pass, products in parallel."""

from clars import native
from clars.norms.methods import costs
from clars.norms.methods.contribution import Contribution
from clars.norms.methods.method import Method
from clars.norms.methods.operands import ConvolutionOperands
from clars.norms.methods.sizes import Sizes


class Each(Method):
    """Convolutions of any kind, by the C++ kernels on processors."""

    name = "each"

    def applies(self, sizes: Sizes) -> bool:
        return sizes.native and bool(sizes.kernel)

    def numbers(self, sizes: Sizes) -> int:
        return 2 * sizes.weights

    def operations(self, sizes: Sizes) -> float:
        if sizes.groups > 1:
            return 1.2
        return 1 + (costs.native_products(sizes) + 0.1 if sizes.pointwise else costs.native_calls(sizes))

    def is_native(self, sizes: Sizes) -> bool:
        return sizes.native

    def form(self, operands: ConvolutionOperands, sizes: Sizes, memory: int | None) -> Contribution:
        tensors, most = (operands.gy, operands.x, operands.weight), self.at_once(sizes, memory)
        return Contribution(*native.kernel("conv_products")(*tensors, *operands.geometry, most, sizes.group))
