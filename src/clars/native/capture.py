"""Capturing and replaying what a GPU is told to do."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

import torch

from clars.native import where

T = TypeVar("T")


class Capture(Protocol):
    """Records work once, and repeats it. What was computed in Python on the way is repeated as it was."""

    def aside(self) -> "contextmanager":
        """Return a context for work that is to be recorded later: it warms up whatever is made at first use."""

    def record(self, work: Callable[[], T]) -> T:
        """Record some work in the place of what was recorded before, without doing it; return what it returned."""

    def replay(self) -> None:
        """Do what was recorded, with the tensors that it was recorded with."""

    def release(self) -> None:
        """Forget what was recorded, whose memory then is free."""


class CudaCapture:
    """A CUDA graph, with a stream of its own on which all is done that leads to it."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)
        self._graph: torch.cuda.CUDAGraph | None = None

    @contextmanager
    def aside(self) -> Iterator[None]:
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            yield
        current.wait_stream(self._stream)

    def record(self, work: Callable[[], T]) -> T:
        torch.cuda.synchronize(self._device)
        self._graph = None  # which has been done by now, and whose memory is free then
        graph = torch.cuda.CUDAGraph()
        # Threads that load data, or watch over processes, may go on with theirs.
        with where.capturing(), torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            result = work()
        self._graph = graph
        return result

    def replay(self) -> None:
        self._graph.replay()

    def release(self) -> None:
        torch.cuda.synchronize(self._device)
        self._graph = None
