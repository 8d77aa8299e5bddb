"""Each product by a multiplication of matrices, its norm taken, then added to the gradient."""

from torch import Tensor

from clars import native
from clars.norms.methods import costs
from clars.norms.methods.contribution import Contribution
from clars.norms.methods.method import Method, Operands
from clars.norms.methods.products import dense, matrices, matrix_products, sum_of_products
from clars.norms.methods.sizes import Sizes


class Matrix(Method):
    """Output gradients by windows of the input. It does the weight gradient's own arithmetic and nothing twice."""

    name = "matrix"

    def applies(self, sizes: Sizes) -> bool:
        if not sizes.kernel:
            return sizes.summed > 1  # else `gram` is a product of two norms
        return sizes.bare or len(sizes.kernel) == 2

    def numbers(self, sizes: Sizes) -> int:
        return sizes.weights + sizes.windows

    def operations(self, sizes: Sizes) -> float:
        if sizes.accelerated:
            laid_out = 3 * sizes.products * sizes.windows * sizes.dtype.itemsize
            moved = costs.read(sizes) + costs.written(sizes) + laid_out
            return costs.on_accelerator(sizes, sizes.operations / costs.SMALL / 3, moved, calls=8)
        if sizes.native:
            return 1 + costs.native_products(sizes) if sizes.pointwise else costs.NEVER
        return 1 + costs.products(sizes) + (0 if costs.lays_out(sizes) else costs.CALL)

    def is_native(self, sizes: Sizes) -> bool:
        return sizes.native and sizes.pointwise

    def form(self, operands: Operands, sizes: Sizes, memory: int | None) -> Contribution:
        if sizes.native and sizes.bare and sizes.groups == 1:
            most = self.at_once(sizes, memory)
            product = native.kernel("matrix_products")(operands.outputs(), dense(operands.windows()), most, sizes.group)
            return Contribution(product[0].view(operands.weight.shape), product[1])

        def products(piece: Operands) -> Tensor:
            outputs, windows = matrices(piece, sizes.group)
            if sizes.groups > 1:
                outputs, windows = (
                    each.reshape(len(each) * sizes.groups, -1, each.shape[2]) for each in (outputs, windows)
                )
            return matrix_products(outputs, windows).view(-1, *operands.weight.shape)

        return sum_of_products(products, operands, self.pieces(sizes, memory))
