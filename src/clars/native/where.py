"""Where something runs: on a processor or an accelerator, under autocast, under torch.compile. Asked here alone."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import reduce

import torch
from torch import Tensor

from clars.native import operators

# Bytes that one piece of work may take by default, on a processor per core, and on an accelerator: small enough for a
# core's cache, large enough to keep an accelerator busy.
WORKING_SET = {"cpu": 3 * 2**20, "accelerator": 256 * 2**20}

is_exporting = getattr(torch.compiler, "is_exporting", lambda: False)  # older torch does not tell


def is_compiling() -> bool:
    """Tell whether torch.compile looks through what runs.

    A function that names `torch`, and no alias: torch.compile looks through a frame of its own, such as this one within
    a forward that breaks its graph, only where that is so.
    """
    return torch.compiler.is_compiling()


def on_processor(tensor: Tensor | str) -> bool:
    """Tell whether a tensor, or a device by the name of its type, is a processor's."""
    return (tensor if isinstance(tensor, str) else tensor.device.type) == "cpu"


def accelerated(tensor: Tensor | str) -> bool:
    """Tell whether a tensor, or a device by the name of its type, is of a kind that `native.device` has kernels for."""
    return (tensor if isinstance(tensor, str) else tensor.device.type) in operators.ACCELERATED


def autocast_dtype(tensor: Tensor) -> torch.dtype | None:
    """Return the type to which autocast casts now on a tensor's device; None where it is off."""
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def threads() -> int:
    """Return the number of threads that torch's operations use; a compiled model keeps that of its compilation."""
    return torch.get_num_threads()


def working_set(device: str) -> int:
    """Return the bytes that one piece of work may take on a device, on a processor those of a core."""
    return WORKING_SET["cpu" if on_processor(device) else "accelerator"]


def has_batch_norm_libraries(x: Tensor) -> bool:
    """Tell whether torch chooses among libraries for batch normalisation, as on GPUs, and this may be left to it."""
    return x.is_cuda and not operators.is_suspended()


def without_autocast(tensor: Tensor) -> AbstractContextManager:
    """Keep autocast, where a backward pass is called inside of it, from taking norms in half precision."""
    device = tensor.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def cast_as_autocast(x: Tensor, *others: Tensor | None) -> tuple[Tensor | None, ...]:
    """Cast to the type in which autocast, where it is on, makes convolutions and matrix products."""
    device, tensors = x.device.type, (x, *others)
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(value if value is None or value.dtype == torch.float64 else value.to(dtype) for value in tensors)


def cast_to_float32(x: Tensor, *others: Tensor | None) -> tuple[Tensor | None, ...]:
    """Cast as accelerators' autocast does for layer and group normalisation; the processors' leaves them alone."""
    tensors = (x, *others)
    if on_processor(x) or not torch.is_autocast_enabled(x.device.type):
        return tensors
    return tuple(value if value is None or value.dtype == torch.float64 else value.float() for value in tensors)


def cast_to_widest(x: Tensor, *others: Tensor | None) -> tuple[Tensor | None, ...]:
    """Cast as accelerators' autocast does for functions whose arguments must be alike; the processors' leaves them."""
    tensors = (x, *others)
    if on_processor(x) or not torch.is_autocast_enabled(x.device.type):
        return tensors
    dtype = reduce(torch.promote_types, [value.dtype for value in tensors if value is not None])
    return tuple(value if value is None else value.to(dtype) for value in tensors)


def name(device: str) -> str:
    """Return the name of the product that a type of device is, of which all are taken to be alike."""
    return torch.cuda.get_device_name() if device == "cuda" else device


def can_be_timed(device: str) -> bool:
    """Tell whether a method can be timed now: not while a graph is captured or compiled."""
    return not operators.is_suspended() and not (not on_processor(device) and is_capturing())


_captures = 0  # under way


@contextmanager
def capturing() -> Iterator[None]:
    """Have `is_capturing` tell so meanwhile, in all threads: a backward pass has one of its own."""
    global _captures
    _captures += 1
    try:
        yield
    finally:
        _captures -= 1


def is_capturing() -> bool:
    """Tell whether what runs is recorded in order to be repeated, as in a CUDA graph: it must not wait for a device."""
    return _captures > 0 or (torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing())


def write(tensor: Tensor, values: Sequence) -> None:
    """Give a tensor other values, without waiting for its device."""
    if on_processor(tensor):
        tensor.copy_(torch.tensor(values, dtype=tensor.dtype))
    else:  # memory that the device reads by itself is kept by torch until it has done so
        tensor.copy_(torch.tensor(values, dtype=tensor.dtype).pin_memory(), non_blocking=True)


def seconds(work: Callable[[], object], device: str) -> float:
    """Return how long some work takes on a device: the best of three runs after one that warms up.

    On CUDA that is told by events on the device. The host runs ahead of it behind some work that is not timed, so that
    a slow host does not count.
    """
    take = _between_events if device == "cuda" else lambda work: _elapsed(work, device)
    return min([take(work) for _ in range(4)][1:])


def _elapsed(work: Callable[[], object], device: str) -> float:
    _wait(device)
    began = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - began


def _wait(device: str) -> None:
    if not on_processor(device):
        torch.accelerator.synchronize()


def _between_events(work: Callable[[], object]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    _keep_busy()
    begin.record()
    work()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def _keep_busy() -> None:
    """Give the device work for about a millisecond."""
    matrix = torch.zeros(2048, 2048, device="cuda")
    for _ in range(4):
        matrix = matrix @ matrix
