"""What the step keeps as vectors over the layers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clars.native.squares import squared_norms
from clars.optim.options import SWITCHES


@dataclass(frozen=True)
class Constants:
    """Vectors over the layers that change only when an option does, or which parameters get a gradient."""

    layer_of: list[Tensor]  # the layers' indices of the weights, and of the gradients
    root_size: Tensor  # [K] square root of the number of weights
    options: dict[str, Tensor]  # [K] each: numbers, or bool

    @classmethod
    def of(
        cls,
        dtype: torch.dtype,
        device: torch.device,
        layer_of: Sequence[Sequence[int]],
        sizes: Sequence[int],
        groups: Sequence[Mapping[str, Any]],
        names: Sequence[str],
    ) -> "Constants":
        """Form them from the layers' indices of weights and gradients, and the K layers' sizes and groups.

        `names` are the options that are wanted.
        """
        kinds = {name: torch.bool if name in SWITCHES else dtype for name in names}
        return cls(
            layer_of=[torch.tensor(each, dtype=torch.long, device=device) for each in layer_of],
            root_size=torch.tensor(sizes, dtype=dtype, device=device).sqrt(),
            options={
                name: torch.tensor([group[name] for group in groups], dtype=kind, device=device)
                for name, kind in kinds.items()
            },
        )


def squares_by_layer(tensors: list[Tensor], layer_of: Tensor, vector: Tensor) -> Tensor:
    """Return each layer's sum of squares of the tensors, [K] as `vector`, accumulated in float32 at least."""
    if not tensors:
        return torch.zeros_like(vector)
    return torch.zeros_like(vector).index_add_(0, layer_of, squared_norms(tensors, vector.dtype))
