"""The network that a recipe describes, built without memory for its weights and no larger than the file of them."""

import math
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_forward_pre_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from clars.errors import CheckpointError, RecipeError
from clars.lab import models
from clars.lab.checkpoints.header import Stored
from clars.lab.recipes.schema import Recipe

SECONDS = 2.5  # of this thread's time, and for each tensor of the file
EACH = 0.01
ROOM = 256 * 2**20  # bytes of buffers that are not saved, such as the masks of windowed attention


def build(recipe: Recipe, num_classes: int, stored: Mapping[str, Stored]) -> nn.Module:
    """Return the network of a recipe on the meta device.

    Args:
        recipe: says which.
        num_classes: of its last layer.
        stored: the tensors of the file of its weights. Building ends where the network comes to more than these, or
            takes too long for as many, so that no recipe of a hundred bytes asks for hours.

    Raises:
        CheckpointError: it cannot be built, or is larger than the file.
    """
    try:
        with torch.device("meta"), _Bounds(stored).kept():
            return models.create(recipe.model, num_classes, recipe.data.channels, recipe.data.image_size)
    except RecipeError as error:
        raise CheckpointError(f"The architecture of the recipe cannot be built: {error}") from None


class _Bounds:
    """How much more may be registered in modules by this thread, and until when."""

    def __init__(self, stored: Mapping[str, Stored]) -> None:
        self.thread = threading.get_ident()
        # Some buffers are not saved, and some layers take the place of others while a network is built.
        self.tensors, self.modules = len(stored) + 800, 20 * len(stored) + 1_000
        self.end = time.thread_time() + SECONDS + EACH * len(stored)
        self.bytes = ROOM + 16 * sum(math.prod(tensor.shape) for tensor in stored.values())

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Make whatever registers more fail, within the block."""
        handles = [
            register_module_parameter_registration_hook(self._tensor),
            register_module_buffer_registration_hook(self._tensor),
            register_module_module_registration_hook(self._module),
            register_module_forward_pre_hook(self._forward),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _tensor(self, module: nn.Module, name: str, tensor: Tensor | None) -> None:
        if tensor is not None:
            self._take(tensors=1, size=tensor.numel() * tensor.element_size())

    def _module(self, module: nn.Module, name: str, inner: nn.Module | None) -> None:
        self._take(modules=1)

    def _forward(self, module: nn.Module, inputs: object) -> None:
        self._take()

    def _take(self, tensors: int = 0, size: int = 0, modules: int = 0) -> None:
        if threading.get_ident() != self.thread:  # the hooks see all threads
            return
        self.tensors, self.bytes, self.modules = self.tensors - tensors, self.bytes - size, self.modules - modules
        if min(self.tensors, self.bytes, self.modules) < 0:
            raise ValueError("the network is larger than the file of its weights")
        if time.thread_time() > self.end:
            raise ValueError("it takes longer to build than a network of the file's tensors may")
