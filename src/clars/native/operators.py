"""The C++ kernels as the rest of the library uses them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from weakref import finalize

import torch
from torch import Tensor

from clars.native.build import load

# Bytes that the products under way may take together, by default.
WORKING_SET = 256 * 2**20

# The types of devices whose layers are measured by the operators in `device`, and whose host should have little to do.
# Tests add the processor's, to run there what runs on these.
ACCELERATED = {"cuda"}

# Whether to do without the kernels for now.
_suspended: ContextVar[bool] = ContextVar("suspended", default=False)


@contextmanager
def suspended() -> Iterator[None]:
    """Do without the kernels: torch.compile looks through operators of torch, and not through these."""
    token = _suspended.set(True)
    try:
        yield
    finally:
        _suspended.reset(token)


def is_suspended() -> bool:
    """Tell whether what runs now is to do without the kernels."""
    return _suspended.get()


def applies(x: Tensor, gy: Tensor) -> bool:
    """Tell whether the kernels can take a layer's input and output gradient, with an example at least per thread."""
    return (
        loaded()
        and x.is_cpu
        and "cpu" not in ACCELERATED
        and x.dtype == gy.dtype == torch.float32
        and x.shape[0] >= torch.get_num_threads()
        and x.numel() > 0
        and torch.backends.mkldnn.enabled
    )


def loaded() -> bool:
    """Tell whether there are kernels, and they are not suspended."""
    return not _suspended.get() and load().loaded


@cache
def kernel(name: str) -> Callable:
    """Return an operator of the kernels."""
    return getattr(torch.ops.clars, name).default


class NativeLayer:
    """A layer in C++ (see autograd/layers.h): for inputs as the first of `arguments`, with a weight as the second.

    Its `operator` takes an input, weight, bias, the layer's `number` and those of two accumulators. It returns the
    output; None where the layer was made for other calls than this one.
    """

    def __init__(self, kind: str, *arguments) -> None:
        self.operator = getattr(torch.ops.clars.call, kind)
        self.number = getattr(torch.ops.clars.make, kind)(*arguments)
        finalize(self, getattr(torch.ops.clars.drop, kind), self.number).atexit = False


def most_workers(bytes_each: int, memory: int | None) -> int:
    """Return how many examples may be under way at once, each taking so many bytes."""
    return max(1, (memory or WORKING_SET) // max(1, bytes_each))
