"""LARS: layer-wise rates from the norm of the averaged gradient."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from clars.layers import LayerUnit
from clars.optim.layerwise import LayerwiseOptimizer


class LARS(LayerwiseOptimizer):
    """Layer-wise Adaptive Rate Scaling (You, Gitman, Ginsburg 2017, arXiv 1708.03888), with CLARS's step.

        ratio_k = trust_coefficient * ||w_k|| / (||g_k|| + weight_decay * ||w_k|| + eps)

    The same arguments as `CLARS`, without `norms`. Every layer is adapted, normalisation and bias included, unless
    `overrides` says otherwise; other implementations leave them out by themselves.
    """

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
    ) -> None:
        super().__init__(
            model,
            lr,
            momentum=momentum,
            weight_decay=weight_decay,
            trust_coefficient=trust_coefficient,
            nesterov=nesterov,
            layers=layers,
            overrides=overrides,
            eps=eps,
            norm_floor=norm_floor,
        )

    def denominators(self, active, gradient_norms, unscale):
        return gradient_norms, None
