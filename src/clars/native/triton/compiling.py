"""Kernels in Triton: importing it at the first use alone, and knowing where it runs."""

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
def compiled(function: Callable, unspecialized: Sequence[str] = ()):
    """Return a function as a kernel, for triton to compile at its first call for each combination of types.

    Triton is imported here, and its language becomes the name `tl` in the function's module, where a kernel looks
    its names up.

    Args:
        function: the kernel's source.
        unspecialized: the arguments that shall not make a kernel of their own where they are 1 or a multiple of 16.
    """
    import triton
    import triton.language as tl

    function.__globals__["tl"] = tl
    return triton.jit(function, do_not_specialize=list(unspecialized))


def cover(size: int, block: int) -> int:
    """Return how many blocks cover `size`."""
    return -(-size // block)


@functools.cache
def processors(device: torch.device) -> int:
    """Return the number of multiprocessors, looked up once; any number gives a correct result."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132
