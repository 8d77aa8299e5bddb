"""CLARS, LARS and LAMB as a reader would write them: one process, one layer at a time, plain tensors in and out.

The optimizers do the same for all layers at once, on any number of processes, and form the per-example norms in the
backward pass; tests hold them to this file. Shapes stand for a convolution with 64 outputs of 3 channels and a bias, at
a batch of B examples.
"""

from math import inf
from typing import NamedTuple

import torch
from torch import Tensor


class Settings(NamedTuple):
    """The options of one layer under CLARS and LARS; see `clars.CLARS`."""

    lr: float
    momentum: float = 0.9
    weight_decay: float = 5e-4
    trust_coefficient: float = 1e-3
    nesterov: bool = True
    eps: float = 1e-8
    norm_floor: float = 1e-3
    max_ratio: float = inf
    decay_in_ratio: bool = True
    rate_in_buffer: bool = True


class LayerState(NamedTuple):
    """The parameters of one layer, such as [64, 3, 3, 3] and [64], and their momentum, zeros at first."""

    weights: list[Tensor]
    buffers: list[Tensor]


class MomentSettings(NamedTuple):
    """The options of one layer under LAMB; see `clars.LAMB`."""

    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    eps: float = 1e-6


class MomentState(NamedTuple):
    """The parameters of one layer, the averages of their gradients and of the squares, zeros at first; steps so far."""

    weights: list[Tensor]
    averages: list[Tensor]
    squares: list[Tensor]
    step: int = 0


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


def lamb_step(state: MomentState, gradients: list[Tensor], settings: MomentSettings) -> MomentState:
    """Take a step of LAMB (You et al. 2020, arXiv 1904.00962, algorithm 2), with the gradients [64, 3, 3, 3] and [64].

    The layer turns by a fraction of its own norm, whatever the norm of the direction is.
    """
    first, second = settings.betas
    step = state.step + 1
    averages = [first * m + (1 - first) * g for m, g in zip(state.averages, gradients)]
    squares = [second * v + (1 - second) * g.square() for v, g in zip(state.squares, gradients)]
    directions = []
    for weight, m, v in zip(state.weights, averages, squares):
        unbiased = m / (1 - first**step), v / (1 - second**step)
        directions.append(unbiased[0] / (unbiased[1].sqrt() + settings.eps) + settings.weight_decay * weight)
    norms = joint_norm(state.weights), joint_norm(directions)
    ratio = norms[0] / norms[1] if all(norms) else 1.0
    weights = [weight - settings.lr * ratio * u for weight, u in zip(state.weights, directions)]
    return MomentState(weights, averages, squares, step)


def sum_of_norms(contributions: list[Tensor]) -> Tensor:
    """Return S, a scalar: the sum over examples of the norm of what each contributes to all the layer's gradients.

    Of an averaged loss, contributions carry the factor 1 / B, and S is the mean of the per-example gradient norms.
    """
    flat = torch.cat([each.flatten(1) for each in contributions], 1)  # [B, 64 * 27 + 64]
    return flat.norm(dim=1).sum()


def ratio(weights: list[Tensor], denominator: Tensor, settings: Settings) -> Tensor:
    """Return trust_coefficient * ||w|| / (denominator + weight_decay * ||w|| + eps), a scalar, or the largest allowed.

    A layer whose weights are smaller than `norm_floor` in root mean square is taken to have that size.
    """
    floor = settings.norm_floor * sum(weight.numel() for weight in weights) ** 0.5
    norm = joint_norm(weights).clamp_min(floor)
    decay = settings.weight_decay if settings.decay_in_ratio else 0.0
    found = settings.trust_coefficient * norm / (denominator + decay * norm + settings.eps)
    return found.clamp_max(settings.max_ratio)


def joint_norm(tensors: list[Tensor]) -> Tensor:
    """Return the norm of all numbers of a layer's tensors together, a scalar."""
    return torch.stack([tensor.norm() for tensor in tensors]).norm()


def _momentum_step(state: LayerState, gradients: list[Tensor], ratio: Tensor, settings: Settings) -> LayerState:
    """Change momentum by b <- momentum * b + rate * (g + weight_decay * w), and weights by what momentum makes of it.

    The rate is inside the buffer, so that a schedule never rescales past steps; or else it is applied to what momentum
    makes of gradients.
    """
    rate = settings.lr * ratio
    inside, outside = (rate, 1.0) if settings.rate_in_buffer else (1.0, rate)
    weights, buffers = [], []
    for weight, buffer, gradient in zip(*state, gradients):
        change = inside * (gradient + settings.weight_decay * weight)
        buffer = settings.momentum * buffer + change
        weights.append(weight - outside * (change + settings.momentum * buffer if settings.nesterov else buffer))
        buffers.append(buffer)
    return LayerState(weights, buffers)
