"""Depthwise convolutions on accelerators: a kernel sums an output gradient times shifted inputs, a tap at a time."""

from clars.native import device
from clars.native.triton.depthwise import TAPS
from clars.norms.methods import costs
from clars.norms.methods.contribution import Contribution
from clars.norms.methods.method import Method, Operands
from clars.norms.methods.sizes import Sizes


class Depthwise(Method):
    """Depthwise convolutions of one and two dimensions, by Triton."""

    name = "depthwise"

    def applies(self, sizes: Sizes) -> bool:
        return sizes.accelerated and sizes.planar and sizes.depthwise and sizes.inputs <= TAPS

    def numbers(self, sizes: Sizes) -> int:
        return sizes.weights

    def operations(self, sizes: Sizes) -> float:
        return costs.on_accelerator(sizes, sizes.operations / costs.VECTOR, costs.read(sizes))

    def form(self, operands: Operands, sizes: Sizes, memory: int | None) -> Contribution:
        gy, x, geometry, kernel = operands.images()
        gradient, squares = device.depthwise_products(gy, x, kernel, *geometry[:3], sizes.group)
        return Contribution(gradient.reshape(operands.weight.shape), squares)
