"""What the step keeps as vectors over the layers."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clars.optim.update import norms, pieces

Blocks = Sequence[tuple[int, int]]  # of each tensor in order: its layer's index, and into how many pieces it is cut


@dataclass(frozen=True)
class Constants:
    """Vectors over the layers that change only when an option does, or which parameters get a gradient."""

    layer_of: list[Tensor]  # of each piece of the weights, and of each piece of the gradients, the layer's index
    floor: Tensor  # [K] smallest weight norm assumed
    weight_decay: Tensor  # [K]
    trust: Tensor  # [K]
    adapt: Tensor  # [K] bool

    @classmethod
    def of(
        cls,
        dtype: torch.dtype,
        device: torch.device,
        blocks: tuple[Blocks, Blocks],
        options: tuple[Sequence[float], Sequence[float], Sequence[bool]],
        sizes: Sequence[int],
        norm_floor: float,
    ) -> "Constants":
        """Form them from the blocks of weights and gradients, the options [K] each and the layers' sizes [K]."""
        like = {"dtype": dtype, "device": device}
        indices = [[k for k, count in each for _ in range(count)] for each in blocks]
        weight_decay, trust, adapt = options
        return cls(
            layer_of=[torch.tensor(each, dtype=torch.long, device=device) for each in indices],
            floor=norm_floor * torch.tensor(sizes, **like).sqrt(),
            weight_decay=torch.tensor(weight_decay, **like),
            trust=torch.tensor(trust, **like),
            adapt=torch.tensor(adapt, device=device),
        )


def squares_by_layer(tensors: list[Tensor], like: list[Tensor], layer_of: Tensor, vector: Tensor) -> Tensor:
    """Return each layer's sum of squares of the tensors, [K] as `vector`, accumulated in float32 at least.

    Piece by piece, which is also the more accurate: one long sum in float32 would lose two digits. `like` are the
    tensors' parameters.
    """
    if not tensors:
        return torch.zeros_like(vector)
    cut = [piece for tensor, other in zip(tensors, like) for piece in _pieces_as(tensor, other)]
    found = norms(cut, vector.dtype)
    return torch.zeros_like(vector).index_add_(0, layer_of, found.square())


def _pieces_as(tensor: Tensor, parameter: Tensor) -> tuple[Tensor, ...]:
    """Cut a tensor into as many pieces as its parameter; a gradient may lie in memory otherwise than its parameter."""
    expected = pieces(parameter)
    return pieces(tensor.contiguous()) if len(expected) > 1 else (tensor,)
