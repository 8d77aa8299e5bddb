"""CLARS and LARS as a reader would write them: one process, one layer at a time, plain tensors in and out.

The optimizers do the same for all layers at once, on any number of processes, and form the per-example norms in the
backward pass; tests hold them to this file. Shapes stand for a convolution with 64 outputs of 3 channels and a bias, at
a batch of B examples.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Settings(NamedTuple):
    """The options of one layer; see `clars.CLARS`."""

    lr: float
    momentum: float = 0.9
    weight_decay: float = 5e-4
    trust_coefficient: float = 1e-3
    nesterov: bool = True
    eps: float = 1e-8
    norm_floor: float = 1e-3


class LayerState(NamedTuple):
    """The parameters of one layer, such as [64, 3, 3, 3] and [64], and their momentum, zeros at first."""

    weights: list[Tensor]
    buffers: list[Tensor]


def clars_step(state: LayerState, contributions: list[Tensor], settings: Settings) -> LayerState:
    """Take a step of CLARS (Huo, Gu, Huang 2020, arXiv 2002.01576, algorithm 1).

    Args:
        state: of the layer before the step.
        contributions: each example's part of the gradients, [B, 64, 3, 3, 3] and [B, 64], which sum to them.
        settings: of the layer.
    """
    gradients = [each.sum(0) for each in contributions]  # [64, 3, 3, 3] and [64]
    denominator = sum_of_norms(contributions)
    return _momentum_step(state, gradients, ratio(state.weights, denominator, settings), settings)


def lars_step(state: LayerState, gradients: list[Tensor], settings: Settings) -> LayerState:
    """Take a step of LARS (You, Gitman, Ginsburg 2017, arXiv 1708.03888), with the gradients [64, 3, 3, 3] and [64]."""
    return _momentum_step(state, gradients, ratio(state.weights, joint_norm(gradients), settings), settings)


def sum_of_norms(contributions: list[Tensor]) -> Tensor:
    """Return S, a scalar: the sum over examples of the norm of what each contributes to all the layer's gradients.

    Of an averaged loss, contributions carry the factor 1 / B, and S is the mean of the per-example gradient norms.
    """
    flat = torch.cat([each.flatten(1) for each in contributions], 1)  # [B, 64 * 27 + 64]
    return flat.norm(dim=1).sum()


def ratio(weights: list[Tensor], denominator: Tensor, settings: Settings) -> Tensor:
    """Return trust_coefficient * ||w|| / (denominator + weight_decay * ||w|| + eps), a scalar.

    A layer whose weights are smaller than `norm_floor` in root mean square is taken to have that size.
    """
    floor = settings.norm_floor * sum(weight.numel() for weight in weights) ** 0.5
    norm = joint_norm(weights).clamp_min(floor)
    return settings.trust_coefficient * norm / (denominator + settings.weight_decay * norm + settings.eps)


def joint_norm(tensors: list[Tensor]) -> Tensor:
    """Return the norm of all numbers of a layer's tensors together, a scalar."""
    return torch.stack([tensor.norm() for tensor in tensors]).norm()


def _momentum_step(state: LayerState, gradients: list[Tensor], ratio: Tensor, settings: Settings) -> LayerState:
    """Change momentum by b <- momentum * b + rate * (g + weight_decay * w), and weights by what momentum makes of it.

    The rate is inside the buffer, so that a schedule never rescales past steps.
    """
    weights, buffers = [], []
    for weight, buffer, gradient in zip(*state, gradients):
        change = settings.lr * ratio * (gradient + settings.weight_decay * weight)
        buffer = settings.momentum * buffer + change
        weights.append(weight - (change + settings.momentum * buffer if settings.nesterov else buffer))
        buffers.append(buffer)
    return LayerState(weights, buffers)
