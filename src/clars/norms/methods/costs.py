"""What the methods' estimates of their cost share, in units of the weight gradient's operations.

The numbers were measured on processors.

A method that forms products one by one costs the weight gradient's operations and, beside them, what the calls, and
writing and reading the products, take. The inner products of `gram` come on top of the gradient formed as usual. So it
wins where they are fewer than that.
"""

from math import prod

from clars.norms.methods.sizes import Sizes

# Of accelerators: operations per second of a library's products, of those in our kernels, of a library's where the
# products are small or of few channels, and of sums without matrices; bytes per second; seconds of a call. Those of
# LIBRARY and FUSED were measured on an H200 in bfloat16, the others follow from what it can do. They are taken where
# nothing can be timed, and to leave out what is not worth timing.
LIBRARY, FUSED, SQUARED, GRAM, SMALL, VECTOR = 400e12, 130e12, 150e12, 200e12, 40e12, 20e12
BANDWIDTH, LAUNCH = 3e12, 5e-6

NEVER = 1e9  # a method that is not worth while, as long as there is another
CALL = 0.01  # a way by many more calls, or by windows laid out, where another does without: enough to order the two


def products(sizes: Sizes) -> float:
    """Return what products by torch's operators take beside the arithmetic; more where windows overlap."""
    return (0.1 if sizes.pointwise else 0.25) / sizes.group


def native_products(sizes: Sizes) -> float:
    """Return what plain products by the C++ kernels take beside the arithmetic.

    To write and read a product of few positions takes longer than to form it; small ones stay in the cache.
    """
    if sizes.operations < 4e6:
        return 0.0
    return (0.15 if sizes.summed <= 64 else 0.05) / sizes.group


def native_calls(sizes: Sizes) -> float:
    """Return what a library's call for each product takes beside the arithmetic: few positions do not fill it."""
    return (0.3 if sizes.summed < 200 and not is_small(sizes) else 0.2) / sizes.group


def is_small(sizes: Sizes) -> bool:
    """Tell whether a library's call takes longer than so little arithmetic, and than that of few channels."""
    return sizes.operations < (4e6 if sizes.channels >= 8 else 16e6) * sizes.products


def lays_out(sizes: Sizes) -> bool:
    """Tell whether laying out windows costs less than torch's convolution calls.

    A call costs more than laying out the windows of so few positions: in each of many groups, and in the whole image
    where a call takes only one example because it has few channels.
    """
    if sizes.groups > 1:
        return sizes.positions < 16
    few = sizes.channels % 8 != 0 and sizes.positions <= 1024
    return prod(sizes.kernel) == 1 or few or sizes.kernel == sizes.stride


def on_accelerator(sizes: Sizes, seconds: float, bytes_moved: float, calls: int = 2) -> float:
    """Return the cost of work that takes so long by its arithmetic, in units of the weight gradient's operations."""
    return (max(seconds, bytes_moved / BANDWIDTH) + calls * LAUNCH) * LIBRARY / max(1, sizes.operations)


def read(sizes: Sizes) -> float:
    """Return the bytes of input and output gradient."""
    values = sizes.outputs * sizes.positions + sizes.channels * sizes.input_positions
    return sizes.examples * sizes.groups * values * sizes.dtype.itemsize


def written(sizes: Sizes) -> float:
    """Return the bytes of products that are written, and read to be squared and to be added."""
    return 3 * sizes.products * sizes.weights * sizes.dtype.itemsize
