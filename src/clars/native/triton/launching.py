"""Launches of kernels that cost the host little: planned once for each form of the operands, and then repeated."""

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# A plan for each combination of forms and hyper-parameters, as many as are kept of one kind. What a plan depends on is
# in its arguments, which are hashed at each call.
plans = functools.lru_cache(maxsize=4096)

# Versions of triton whose compiled kernels are launched by `compiled[grid](*arguments)`, where the arguments are all
# of the signature's, the constant ones too. That of 3.2 wants these left out.
_KNOWN = {"3.3", "3.4", "3.5", "3.6", "3.7", "3.8", "3.9"}


class Launch:
    """A kernel's launch with all fixed but its tensors, which come first among its arguments.

    Each time, triton finds the compiled code for the arguments' types and values anew. That takes Python several times
    as long as the launch itself. With fixed types and values there is only one thing left that the code depends on:
    which of the tensors begin at a multiple of 16 bytes. So the code that the first launch found is kept for these.

    Args:
        kernel: as `compiling.compiled` returns it.
        grid: how many programs, in one or two dimensions.
        values: the arguments that follow the tensors.
        device: of the tensors, whose types shall be the same at each call.
        options: for triton, such as num_warps.
    """

    def __init__(self, kernel, grid: Sequence[int], values: Sequence, device: torch.device, **options) -> None:
        self.kernel, self.values, self.options = kernel, tuple(values), options
        self.grid = (*grid, 1, 1)[:3]
        self.index = device.index if device.type == "cuda" else None
        self._found: dict[tuple[bool, ...], Callable] = {}
        self._may_find = _known_version()

    def __call__(self, *tensors: Tensor) -> None:
        # Triton launches on the current device, whatever the tensors'.
        if self.index is None or torch.cuda.current_device() == self.index:
            self._launch(tensors)
        else:
            with torch.cuda.device(self.index):
                self._launch(tensors)

    def _launch(self, tensors: tuple[Tensor, ...]) -> None:
        aligned = tuple([tensor.data_ptr() % 16 == 0 for tensor in tensors])
        found = self._found.get(aligned)
        if found is not None:
            try:
                found(*tensors, *self.values)
                return
            except TypeError:  # the launcher wants other arguments after all; launched twice, a kernel writes the same
                self._found, self._may_find = {}, False
        made = self.kernel[self.grid](*tensors, *self.values, **self.options)
        if self._may_find and hasattr(type(made), "__getitem__"):  # the interpreter makes none
            self._found[aligned] = made[self.grid]


@functools.cache
def _known_version() -> bool:
    import triton

    return ".".join(triton.__version__.split(".")[:2]) in _KNOWN
