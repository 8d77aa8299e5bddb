"""A driver for triton of an H100 that is not there: kernels are compiled for it, and told of instead of launched."""

from collections.abc import Callable
from itertools import count

import torch


class _Utilities:
    """What triton asks of a device about its kernels."""

    def __init__(self) -> None:
        self._loaded = count(1)

    def load_binary(self, *code):
        """Return module and function, other ones for each kernel, and the registers, spills and threads it takes."""
        number = next(self._loaded)
        return number, number, 32, 0, 1024

    def unload_module(self, module):
        pass

    def get_device_properties(self, device):
        return {"max_shared_mem": 232448, "multiprocessor_count": 132}


class _Driver:
    """The only device, whose tensors are a processor's."""

    def __init__(self, launched: Callable) -> None:
        self.utils = _Utilities()
        self.launcher_cls = lambda source, metadata: launched

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_active_torch_device(self):
        return torch.device("cpu")


def install(launched: Callable) -> None:
    """Have triton compile for the device, and call `launched` with what the launcher of a kernel is called with.

    That is the grid's three sizes, the stream, the function that was loaded, four more things, and the kernel's
    arguments.
    """
    from triton.runtime import driver

    driver.set_active(_Driver(launched))
