"""One kernel forms, squares and adds each product without writing it to memory, on accelerators."""

from clars.native.triton import compiling, fused_products
from clars.norms.methods import costs
from clars.norms.methods.contribution import Contribution
from clars.norms.methods.method import Method
from clars.norms.methods.operands import ConvolutionOperands
from clars.norms.methods.sizes import Sizes


class Fused(Method):
    """Convolutions of two dimensions, by Triton. What it costs there depends on the device: it is timed."""

    name = "fused"

    def applies(self, sizes: Sizes) -> bool:
        known = len(sizes.kernel) == 2 and sizes.dtype in fused_products.DTYPES
        return known and compiling.available(sizes.device)

    def numbers(self, sizes: Sizes) -> int:
        return 1

    def operations(self, sizes: Sizes) -> float:
        return costs.NEVER

    def form(self, operands: ConvolutionOperands, sizes: Sizes, memory: int | None) -> Contribution:
        return Contribution(
            *fused_products.fused_products(operands.gy, operands.x, operands.kernel, *operands.geometry, sizes.group)
        )
