"""Kernels in Triton: importing it at the first use alone, and knowing where it runs."""

import builtins
import functools
import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec

import torch


def available(device: torch.device | str) -> bool:
    """Tell whether kernels run on `device`: CUDA with triton, or any device in triton's interpreter.

    The interpreter is on where TRITON_INTERPRET=1 was set before triton was first imported.
    """
    return (torch.device(device).type == "cuda" or interpreted()) and _installed()


def interpreted() -> bool:
    """Tell whether kernels run in triton's interpreter."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def _installed() -> bool:
    return find_spec("triton") is not None


@functools.cache
def compiled(function: Callable, unspecialized: Sequence[str] = (), helpers: Sequence[str] = ()):
    """Return a function as a kernel, for triton to compile at its first call for each combination of types.

    Triton is imported here, and its language becomes the name `tl` in the function's module, where a kernel looks
    its names up.

    Args:
        function: the kernel's source.
        unspecialized: the arguments that shall not make a kernel of their own where they are 1 or a multiple of 16.
        helpers: the names of the functions in its module that the kernel calls. They become kernels' own there.
    """
    import triton
    import triton.language as tl

    names = function.__globals__
    names["tl"] = tl
    names.update({helper: triton.jit(names[helper]) for helper in helpers})
    if interpreted():
        names["range"] = _interpreted_range
    return triton.jit(function, do_not_specialize=list(unspecialized))


def _interpreted_range(*bounds) -> range:
    """Return a range whose bounds may be the interpreter's tensors.

    Those hold arrays of one number, and some versions of triton leave it to numpy to make an integer of one, which
    numpy has given up for arrays that have a dimension.
    """
    return builtins.range(*(bound if isinstance(bound, int) else bound.handle.data.item() for bound in bounds))


def cover(size: int, block: int) -> int:
    """Return how many blocks cover `size`."""
    return -(-size // block)


def covering(size: int) -> int:
    """Return the least power of two that is no less than `size`."""
    return 1 << (size - 1).bit_length()


def power_of_two(size: int, most: int) -> int:
    """Return the power of two of 16..`most` that covers `size`, or `most`. 16 is the least that tl.dot takes."""
    return min(most, max(16, covering(size)))


@functools.cache
def processors(device: torch.device) -> int:
    """Return the number of multiprocessors, looked up once; any number gives a correct result."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132
