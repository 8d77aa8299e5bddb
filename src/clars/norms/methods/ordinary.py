"""Each group's product by the layer's ordinary backward pass of its examples."""

from torch import Tensor

from clars.norms.methods import costs
from clars.norms.methods.contribution import Contribution
from clars.norms.methods.method import Method, Operands, slices
from clars.norms.methods.products import sum_of_products
from clars.norms.methods.sizes import Sizes


class Ordinary(Method):
    """Groups of examples, in layers of any kind, on any device: what a library does best, a group at a time."""

    name = "ordinary"

    def applies(self, sizes: Sizes) -> bool:
        return sizes.group > 1

    def numbers(self, sizes: Sizes) -> int:
        return sizes.weights

    def operations(self, sizes: Sizes) -> float:
        if sizes.accelerated:
            moved = costs.read(sizes) + costs.written(sizes)
            return costs.on_accelerator(sizes, sizes.operations / costs.LIBRARY, moved, calls=6 * sizes.products)
        return costs.NEVER if sizes.native else 1 + costs.products(sizes) + (0 if sizes.kernel else costs.CALL)

    def pieces(self, sizes: Sizes, memory: int | None) -> list[slice]:
        return slices(sizes.examples, 1, 1, sizes.group)

    def form(self, operands: Operands, sizes: Sizes, memory: int | None) -> Contribution:
        def products(piece: Operands) -> Tensor:
            return piece.gradient().unsqueeze(0)

        return sum_of_products(products, operands, self.pieces(sizes, memory))
