"""Options that change from step to step, where a step that is repeated by the device reads them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from clars.native import where
from clars.optim.options import by_layer


class Live:
    """Numbers of parameter groups as vectors [K] over the layers, on the device and in float64.

    Args:
        names: of the options, and of counters.
        layers: the K layers' names.
        device: where they are read.
    """

    def __init__(self, names: Sequence[str], layers: Sequence[str], device: torch.device) -> None:
        self.names, self._layers = tuple(names), layers
        self._values = torch.zeros(len(names), len(layers), dtype=torch.float64, device=device)
        self._written: list[list[float]] | None = None

    def __getitem__(self, name: str) -> Tensor:
        """Return the vector of an option."""
        return self._values[self.names.index(name)]

    def write(self, groups: Sequence[Mapping[str, Any]]) -> None:
        """Put the groups' present values there; without effect, and without sending anything, where they are there."""
        group_of = by_layer(groups)
        values = [[group_of[layer][name] for layer in self._layers] for name in self.names]
        if values != self._written:
            where.write(self._values, values)
            self._written = values
