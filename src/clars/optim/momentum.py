"""The step that CLARS, LARS and plain Nesterov share; they differ in the denominator of the layer's ratio."""

from abc import abstractmethod
from collections.abc import Mapping
from math import inf
from typing import Any

import torch
from torch import Tensor, nn

from clars.layers import LayerUnit
from clars.optim.layerwise import LayerwiseOptimizer
from clars.optim.measurement import Measured
from clars.optim.update import Momentum, update


class MomentumOptimizer(LayerwiseOptimizer):
    """Nesterov momentum with one rate per layer; see `CLARS` and `LARS` for the arguments.

    For layer k with weights w, gradient g, weight decay l and the scheduled rate lr:

        ratio_k = trust_coefficient * ||w|| / (denominator_k + l * ||w|| + eps)       (1 where adapt is False)
        b <- momentum * b + lr * ratio_k * (g + l * w)
        w <- w - (lr * ratio_k * (g + l * w) + momentum * b)                          (w - b without Nesterov)

    The rate is inside the buffer: a schedule never rescales past steps. A layer whose norm is below
    `norm_floor * sqrt(number of its weights)` gets the ratio of a layer with that norm, so that a layer initialised
    to zero trains, slowly at first, instead of standing still or taking the raw rate.

    Three options make it the step of other implementations. With `max_ratio`, no adapted layer has a larger ratio.
    With decay_in_ratio=False, the denominator is without l * ||w||. With rate_in_buffer=False, the rate is outside the
    buffer, as in torch.optim.SGD, and momentum is in the unit of gradients:

        b <- momentum * b + (g + l * w)
        w <- w - lr * ratio_k * ((g + l * w) + momentum * b)                          (w - lr * ratio_k * b without)
    """

    buffers = ("momentum_buffer",)
    of_ratio = ("adapt", "weight_decay", "trust_coefficient", "max_ratio", "decay_in_ratio")
    of_update = ("lr", *Momentum._fields)

    def __init__(
        self,
        model: nn.Module,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        trust_coefficient: float = 1e-3,
        nesterov: bool = True,
        layers: LayerUnit = "module",
        overrides: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        eps: float = 1e-8,
        norm_floor: float = 1e-3,
        max_ratio: float = inf,
        decay_in_ratio: bool = True,
        rate_in_buffer: bool = True,
    ) -> None:
        if norm_floor < 0:
            raise ValueError(f"norm_floor={norm_floor!r} must not be negative.")
        self.norm_floor = norm_floor
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "nesterov": nesterov,
            "adapt": True,
            "max_ratio": max_ratio,
            "decay_in_ratio": decay_in_ratio,
            "rate_in_buffer": rate_in_buffer,
        }
        super().__init__(model, defaults, layers, overrides, eps)

    @abstractmethod
    def denominators(self, gradient_norms: Tensor, totals: Tensor | None) -> Tensor:
        """Return the ratios' denominators [K] from ||g|| [K] and the examples' totals [K, 4], both of whole layers."""

    def ratios(self, measured: Measured) -> Tensor:
        options = measured.constants.options
        assumed = torch.maximum(measured.weight_norms, self.norm_floor * measured.constants.root_size)
        decay = options["weight_decay"] * options["decay_in_ratio"]
        bottom = self.denominators(measured.gradient_norms, measured.totals) + decay * assumed + self.eps
        return torch.minimum(options["trust_coefficient"] * assumed / bottom, options["max_ratio"])

    def kept(self, group):
        return self.buffers if group["momentum"] else ()

    def update(self, weights, gradients, buffers, rates, group):
        momentum = buffers[0] if buffers else [None] * len(weights)
        update(weights, gradients, momentum, rates, Momentum(*(group[name] for name in Momentum._fields)))
