"""Linear layers with any number of positions between the batch and the feature dimension."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from clars.norms.product import bias_contribution, matrix_contribution
from clars.norms.rule import Contribution, Gradients


@dataclass(frozen=True)
class Linear:
    """y = x W^T + b for x [B, ..., D], W [P, D], b [P]."""

    def forward(self, x, weight, bias):
        return F.linear(x, weight, bias), ()

    def backward(self, gy: Tensor, x: Tensor, weight: Tensor, saved, needs) -> Gradients:
        for_input, for_weight, for_bias = needs
        by_position = (gy.reshape(len(gy), -1, gy.shape[-1]), x.reshape(len(x), -1, x.shape[-1]))
        return Gradients(
            gy @ weight if for_input else None,
            matrix_contribution(*by_position) if for_weight else Contribution(),
            bias_contribution(by_position[0], (1,)) if for_bias else Contribution(),
        )
