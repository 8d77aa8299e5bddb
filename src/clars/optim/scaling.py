"""Gradients that a GradScaler has scaled, and the norms that must follow."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clars.errors import UserError

if TYPE_CHECKING:
    from clars.optim.layerwise import LayerwiseOptimizer


def unscaled(optimizer: "LayerwiseOptimizer", gradients: list[Tensor]) -> Tensor | float | None:
    """Bring the gradients to their own unit; return the factor for the examples' norms, or None to skip the step.

    Only under a GradScaler is there anything to do; like GradScaler itself for any optimizer, this then asks the device
    whether a gradient overflowed.

    Raises:
        ValueError: the gradients were unscaled before, by what scale is not known.
    """
    found_inf = getattr(optimizer, "found_inf", None)
    if found_inf is None:
        return 1.0
    if found_inf.item():
        return None
    scale = getattr(optimizer, "grad_scale", None)
    if scale is None:
        return _scale_of_explicit_unscaling(optimizer)
    if gradients:
        torch._foreach_mul_(gradients, scale.reciprocal().to(gradients[0].device))
    return scale.reciprocal()


def _scale_of_explicit_unscaling(optimizer: "LayerwiseOptimizer") -> float:
    """The gradients were unscaled by `scaler.unscale_(optimizer)`, which does not know of the norms."""
    if optimizer.grad_scaler is None:
        raise UserError(
            "scaler.unscale_(optimizer) was called, and the scale it removed is not known to the optimizer. Tell "
            "it the scaler once: optimizer.grad_scaler = scaler."
        )
    return 1.0 / optimizer.grad_scaler.get_scale()
