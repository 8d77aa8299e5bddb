"""What the step keeps as vectors over the layers."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clars.optim.update import squared_norms


@dataclass(frozen=True)
class Constants:
    """Vectors over the layers that change only when an option does, or which parameters get a gradient."""

    layer_of: list[Tensor]  # the layers' indices of the weights, and of the gradients
    floor: Tensor  # [K] smallest weight norm assumed
    weight_decay: Tensor  # [K]
    trust: Tensor  # [K]
    adapt: Tensor  # [K] bool

    @classmethod
    def of(
        cls,
        dtype: torch.dtype,
        device: torch.device,
        layer_of: Sequence[Sequence[int]],
        options: Sequence[tuple[float, float, bool]],
        sizes: Sequence[int],
        norm_floor: float,
    ) -> "Constants":
        """Form them from the layers' indices of weights and gradients, and the options and sizes of the K layers."""
        like = {"dtype": dtype, "device": device}
        weight_decay, trust, adapt = zip(*options)
        return cls(
            layer_of=[torch.tensor(each, dtype=torch.long, device=device) for each in layer_of],
            floor=norm_floor * torch.tensor(sizes, **like).sqrt(),
            weight_decay=torch.tensor(weight_decay, **like),
            trust=torch.tensor(trust, **like),
            adapt=torch.tensor(adapt, device=device),
        )


def squares_by_layer(tensors: list[Tensor], layer_of: Tensor, vector: Tensor) -> Tensor:
    """Return each layer's sum of squares of the tensors, [K] as `vector`, accumulated in float32 at least."""
    if not tensors:
        return torch.zeros_like(vector)
    return torch.zeros_like(vector).index_add_(0, layer_of, squared_norms(tensors, vector.dtype))
