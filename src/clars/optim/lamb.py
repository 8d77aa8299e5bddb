"""LAMB: Adam's direction, with a rate per layer from its norm."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from clars.layers import LayerUnit
from clars.optim.layerwise import LayerwiseOptimizer
from clars.optim.measurement import Measured
from clars.optim.moments import Moments, Tensors, squared_direction_norms, step


class LAMB(LayerwiseOptimizer):
    """Layer-wise adaptive moments (You et al. 2020, arXiv 1904.00962, algorithm 2, with phi(z) = z).

    For layer k with weights w and gradient g, and t the number of the step:

        m <- beta_1 * m + (1 - beta_1) * g;    v <- beta_2 * v + (1 - beta_2) * g^2
        u = (m / (1 - beta_1^t)) / (sqrt(v / (1 - beta_2^t)) + eps) + weight_decay * w
        ratio_k = ||w_k|| / ||u_k||        (1 where either norm is zero, and where adapt is False)
        w <- w - lr * ratio_k * u

    Norms are of whole layers, so that it takes the same steps under DistributedDataParallel, FSDP2 and DeepSpeed ZeRO
    (see `clars.bind`) as in one process, where it is `timm.optim.Lamb` with always_adapt=True and max_grad_norm=None.
    Gradients are not clipped here; ||u_k|| is formed from those that the step uses, clipped or not.

    An ordinary torch optimizer with one parameter group per layer, in which "layer" is its name. The state of a
    parameter is "exp_avg" (m) and "exp_avg_sq" (v), of its shape. t is "step" of the groups, the number of steps that
    were taken, also those in which a layer had no gradient: its averages then stay as they are, and the correction of
    their bias goes on, as with timm's.

    Args:
        model: the parameters that are trainable now are optimised; those unfrozen later are not.
        lr: the global rate; layer k moves by lr * ||w_k||, or by lr * ||u_k|| where the ratio is 1.
        betas: how much of the averages stays at a step.
        weight_decay: of the weights, added to the direction.
        eps: added to the root of v, in the gradient's unit.
        layers: "parameter", or "module" (weight and bias of a module are one layer); see `clars.layers`.
        overrides: options per layer-name pattern, as of `CLARS`: lr, betas, weight_decay, adapt.

    Raises:
        ValueError: an impossible value, an unknown option, a pattern that matches nothing.
    """

    counters = ("step",)
    buffers = ("exp_avg", "exp_avg_sq")
    of_update = ("lr", "betas", "weight_decay", "step")

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.01,
        eps: float = 1e-6,
        layers: LayerUnit = "parameter",
        overrides: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        if not eps > 0:
            raise ValueError(f"eps={eps!r} must be above 0: a weight without gradients would be divided by zero.")
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "adapt": True}
        super().__init__(model, defaults, layers, overrides, eps)

    def ratios(self, measured: Measured) -> Tensor:
        top, bottom = measured.weight_norms, self._direction_norms(measured)
        return torch.where((top > 0) & (bottom > 0), top / bottom, 1.0)

    def _direction_norms(self, measured: Measured) -> Tensor:
        """Return ||u|| [K] of whole layers, without their parameters that have no gradient."""
        like, layer_of = measured.weight_norms, measured.constants.layer_of[1]
        active, squares = self.layout.active(), {}
        for group, shards in self.alike(shard for shard in measured.shards if shard.name in active):
            tensors = _tensors(*self.tensors(shards, group))
            found = squared_direction_norms(tensors, measured.factor, self._moments(group), like.dtype)
            squares |= zip(map(id, shards), found)
        own = torch.zeros_like(like)
        if squares:
            none = like.new_zeros(())
            each = [squares.get(id(shard), none).to(none) for shard in measured.shards]
            own.index_add_(0, layer_of, torch.stack(each))
        return self.layout.joint(own).sqrt()

    def update(self, weights, gradients, buffers, rates, group):
        step(_tensors(weights, gradients, buffers), rates, self._moments(group))

    def _moments(self, group: Mapping[str, Any]) -> Moments:
        return Moments(tuple(group["betas"]), group["weight_decay"], self.eps, group["step"] + 1)


def _tensors(weights: list[Tensor], gradients: list[Tensor], buffers: list[list[Tensor]]) -> Tensors:
    return Tensors(weights, gradients, *buffers)
