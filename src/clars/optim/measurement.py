"""The norms of whole layers at a step, and the checks that they are what they are taken for."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from clars.errors import UserError
from clars.native import where
from clars.optim import unmeasured
from clars.optim.options import by_layer, values
from clars.optim.vectors import Constants, squares_by_layer
from clars.precision import wide
from clars.sharding.check import require_agreement, verify
from clars.sharding.layout import Layout, Shard


@dataclass(frozen=True)
class Measured:
    """What the ratios are made of, vectors over the K layers.

    `totals` [K, 4] are those of the examples (see `clars.ExampleNorms.totals`); None where none are formed. `norm` is
    that of all gradients together. `shards` are those whose gradients are here. The gradients that the step uses
    are `factor` times those in `shards`.
    """

    shards: list[Shard]
    constants: Constants
    weight_norms: Tensor
    gradient_norms: Tensor
    totals: Tensor | None
    norm: Tensor
    factor: Tensor | float = 1.0

    def unscaled(self, norms: Tensor | float, gradients: Tensor | float) -> "Measured":
        """Return it with norms of examples, and of gradients, in the unit of the gradients that the step uses."""
        totals = self.totals
        if totals is not None:
            sums, squares, *counts = totals.unbind(1)
            totals = torch.stack([sums * norms, squares * norms * norms, *counts], 1)
        return replace(self, gradient_norms=self.gradient_norms * gradients, totals=totals, factor=gradients)


class Measurement:
    """Measures the layers of an optimizer whose elements are where `layout` says."""

    def __init__(self, optimizer: Any, layout: Layout) -> None:
        self.optimizer, self.layout = optimizer, layout
        self.layers = optimizer.layers
        self.number = {layer.prefix + local: k for k, layer in enumerate(self.layers) for local in layer.parameters}
        self._count = 0
        self._constants: tuple[Any, Constants] | None = None

    def __call__(self, shards: list[Shard]) -> Measured:
        """Form the norms of whole layers and the totals of the global batch.

        `shards` are those whose gradients are here; other processes do the same with theirs.
        """
        gradients = [self.layout.gradient(shard) for shard in shards]
        if any(gradient.is_sparse for gradient in gradients):
            raise UserError("A gradient is sparse; layer-wise rates need dense gradients (sparse=False).")
        weights = [shard.view(shard.owner) for shard in self.layout.shards]
        constants = self._vectors(shards)
        squares = [
            squares_by_layer(tensors, layer_of, constants.root_size)
            for tensors, layer_of in zip((weights, gradients), constants.layer_of)
        ]
        partly = self._verify(shards, squares[1])
        totals, measured = self.optimizer.totals(squares[0]) or (None, set())
        whole, totals = self.layout.whole(torch.stack(squares, 1), totals)
        if totals is not None:
            doubtful = self._in_doubt(shards, measured, partly)
            unmeasured.refuse(self.layers, doubtful, partly, whole[:, 1], totals[:, 2], self.optimizer.remedy)
            totals = torch.where(whole[:, 1:] > 0, totals, 0.0)  # what belongs to gradients that were set to zero
        return Measured(shards, constants, *whole.sqrt().unbind(1), totals, whole[:, 1].sum().sqrt())

    def _verify(self, shards: list[Shard], squares: Tensor) -> set[str]:
        """Check, with the first, second, fourth ... step, what is believed of all processes.

        Returns the layers of which a parameter has a gradient and was never measured in any process. `squares` are the
        squared norms [K] of this process's gradients.
        """
        self.layout.check()
        if where.is_capturing():  # what is repeated was checked in the steps before, and cannot be asked
            return set()
        self._count += 1
        if self._count & (self._count - 1):
            return set()
        reached = self.layout.reached_by(shards)
        partly = verify(self.layout, self.optimizer.elements, reached, self.optimizer.unmeasured())
        require_agreement(self.layout, [layer.name for layer in self.layers], squares)
        return partly

    def _in_doubt(self, shards: list[Shard], measured: set[str], partly: set[str]) -> list[int]:
        """Return the layers with a gradient that has no norms in this process, or not of all of its parameters."""
        reached = {self.number[name] for name in self.layout.reached_by(shards)}
        group_of = by_layer(self.optimizer.param_groups)
        names = {k: self.layers[k].name for k in sorted(reached)}
        return [k for k, name in names.items() if group_of[name]["adapt"] and (name not in measured or name in partly)]

    def _vectors(self, shards: Sequence[Shard]) -> Constants:
        every = self.layout.shards
        device = every[0].owner.device if every else self.layout.device
        precise = torch.float64 in {wide(parameter.dtype) for parameter in self.layout.parameters.values()}
        dtype = torch.float64 if precise else torch.float32
        names = self.optimizer.of_ratio
        options = [values(group, names) for group in self.optimizer.param_groups]
        key = (dtype, device, options, [shard.name for shard in shards])
        if self._constants is None or self._constants[0] != key:
            groups = [by_layer(self.optimizer.param_groups)[layer.name] for layer in self.layers]
            indices = [[self.number[shard.name] for shard in each] for each in (every, shards)]
            elements = self.optimizer.elements
            sizes = [sum(elements[layer.prefix + local] for local in layer.parameters) for layer in self.layers]
            self._constants = (key, Constants.of(dtype, device, indices, sizes, groups, names))
        return self._constants[1]
