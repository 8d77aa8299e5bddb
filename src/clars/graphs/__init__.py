"""A whole training step as a CUDA graph: the device repeats it, and the host has next to nothing to do."""

from clars.graphs.graphed import graphed

__all__ = ["graphed"]
