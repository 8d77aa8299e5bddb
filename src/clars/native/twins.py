"""What the kernels for accelerators compute, by torch's own operators: on any device, and in double precision too.

They are used where the kernels are not, and on processors, to go the way that GPUs take without having one.
"""

from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F

from clars.precision import wide

# The gradient of x, those of scale and shift, and the squared norms of the examples' contributions to these two.
Backward = tuple[Tensor | None, Tensor, Tensor, Tensor, Tensor]


def batch_norm_backward(
    gy: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    training: bool,
    needs_input: bool,
    first: int,
    last: int,
    group: int,
) -> Backward:
    """Return what `triton.normalisation.batch_norm_backward` returns, for float64 in float64."""
    by_channel = (*x.shape[:2], prod(x.shape[2:]))
    dy, normal = _operands(gy, x, by_channel, mean.reshape(-1, 1), rstd.reshape(-1, 1))
    scale, shift = (dy * normal).sum(2), dy.sum(2)
    factors = weight.reshape(-1, 1), rstd.reshape(-1, 1)
    gx = _centred(dy, normal, *factors, (0, 2)) if training else dy * factors[0] * factors[1]
    return _like(x, gx) if needs_input else None, *_measured(scale, shift, first, last, group)


def group_norm_backward(
    gy: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    groups: int,
    needs_input: bool,
    first: int,
    last: int,
    group: int,
) -> Backward:
    """Return what `triton.normalisation.group_norm_backward` returns, for float64 in float64."""
    examples, channels = x.shape[:2]
    by_group = (examples, groups, channels // groups, prod(x.shape[2:]))
    per_group = (examples, groups, 1, 1)
    dy, normal = _operands(gy, x, by_group, mean.reshape(per_group), rstd.reshape(per_group))
    scale, shift = (dy * normal).sum(3).view(examples, channels), dy.sum(3).view(examples, channels)
    gx = _centred(dy, normal, weight.reshape(1, groups, -1, 1), rstd.reshape(per_group), (2, 3))
    return _like(x, gx) if needs_input else None, *_measured(scale, shift, first, last, group)


def layer_norm_backward(
    gy: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    needs_input: bool,
    first: int,
    last: int,
    group: int,
) -> Backward:
    """Return what `triton.normalisation.layer_norm_backward` returns, for float64 in float64."""
    per_row = (*x.shape[:2], 1)
    dy, normal = _operands(gy, x, x.shape, mean.reshape(per_row), rstd.reshape(per_row))
    scale, shift = (dy * normal).sum(1), dy.sum(1)
    gx = _centred(dy, normal, weight, rstd.reshape(per_row), 2)
    return _like(x, gx) if needs_input else None, *_measured(scale, shift, first, last, group)


def _operands(gy: Tensor, x: Tensor, shape, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """Return gy and the normalised x, of a shape, in the type in which sums are formed."""
    dtype = wide(x.dtype)
    return gy.reshape(shape).to(dtype), (x.reshape(shape).to(dtype) - mean) * rstd


def _centred(dy: Tensor, normal: Tensor, weight: Tensor, rstd: Tensor, dim) -> Tensor:
    """Return the gradient of x where the statistics over `dim` depend on it."""
    weighted = dy * weight
    return rstd * (weighted - weighted.mean(dim, keepdim=True) - normal * (weighted * normal).mean(dim, keepdim=True))


def _like(x: Tensor, gx: Tensor) -> Tensor:
    """Return the gradient of x in its shape, type and memory format."""
    return torch.empty_like(x).copy_(gx.reshape(x.shape))


def _measured(scale: Tensor, shift: Tensor, first: int, last: int, group: int):
    """Return the sums over the examples of their contributions [B, C], and the squared norms of the measured ones."""
    return scale.sum(0), shift.sum(0), *(_squares(terms[first:last], group) for terms in (scale, shift))


def _squares(terms: Tensor, group: int) -> Tensor:
    """Return the squared norms of the sums over each group of consecutive terms [b, C]; the last may be smaller."""
    whole = F.pad(terms, (0, 0, 0, -len(terms) % group))
    return whole.view(len(whole) // group, group, terms.shape[1]).sum(1).square().sum(1)
