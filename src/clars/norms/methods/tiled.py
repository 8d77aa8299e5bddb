"""Products of convolutions in groups of channels, by a kernel of our own that holds tiles of them in registers."""

from clars import native
from clars.native import most_workers
from clars.norms.methods.contribution import Contribution
from clars.norms.methods.method import Method
from clars.norms.methods.operands import ConvolutionOperands
from clars.norms.methods.sizes import Sizes

# A group of more channels, at more than a few positions, is work enough for a call of a library.
WIDE, FEW = 40, 64


class Tiled(Method):
    """Convolutions of two dimensions in groups of several channels, by the C++ kernels on processors."""

    name = "tiled"

    def applies(self, sizes: Sizes) -> bool:
        return sizes.native and len(sizes.kernel) == 2 and sizes.groups > 1 and sizes.channels > 1

    def numbers(self, sizes: Sizes) -> int:
        return sizes.weights + 2 * sizes.inputs * sizes.outputs + sizes.channels * sizes.input_positions

    def operations(self, sizes: Sizes) -> float:
        return 0.8 if sizes.channels <= WIDE or sizes.positions <= FEW else 1.25

    def at_once(self, sizes: Sizes, memory: int | None) -> int:
        return min(sizes.products * sizes.groups, sizes.threads, most_workers(self.bytes(sizes), memory))

    def is_native(self, sizes: Sizes) -> bool:
        return sizes.native

    def form(self, operands: ConvolutionOperands, sizes: Sizes, memory: int | None) -> Contribution:
        tensors, most = (operands.gy, operands.x), self.at_once(sizes, memory)
        kernel = native.kernel("tiled_products")
        return Contribution(*kernel(*tensors, operands.kernel, *operands.geometry, most, sizes.group))
