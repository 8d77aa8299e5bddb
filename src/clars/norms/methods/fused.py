"""One kernel forms and squares each product without writing it to memory, on accelerators."""

from clars.native import device
from clars.norms.methods import costs
from clars.norms.methods.contribution import Contribution
from clars.norms.methods.method import Method, Operands
from clars.norms.methods.sizes import Sizes


class Fused(Method):
    """Convolutions of one and two dimensions and linear layers, by Triton."""

    name = "fused"

    def applies(self, sizes: Sizes) -> bool:
        return sizes.accelerated and sizes.planar

    def numbers(self, sizes: Sizes) -> int:
        return 1

    def operations(self, sizes: Sizes) -> float:
        return costs.on_accelerator(sizes, sizes.operations / costs.FUSED, costs.read(sizes))

    def form(self, operands: Operands, sizes: Sizes, memory: int | None) -> Contribution:
        """Add up the products as well: their sum is the gradient."""
        gy, x, geometry, kernel = operands.images()
        gradient, squares = device.fused_products(gy, x, kernel, *geometry, sizes.group)
        return Contribution(gradient.reshape(operands.weight.shape), squares)


class Squared(Fused):
    """The ordinary weight gradient beside it: without a sum to keep, the kernel has room for larger tiles."""

    name = "squared"

    def operations(self, sizes: Sizes) -> float:
        taken = sizes.operations / costs.SQUARED + sizes.operations / costs.LIBRARY
        return costs.on_accelerator(sizes, taken, 2 * costs.read(sizes), calls=3)

    def form(self, operands: Operands, sizes: Sizes, memory: int | None) -> Contribution:
        """Form the squared norms alone."""
        gy, x, geometry, kernel = operands.images()
        return Contribution(None, device.fused_squares(gy, x, kernel, *geometry, sizes.group))
