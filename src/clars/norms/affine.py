"""Normalisations: a scale and a shift per channel, after statistics over a batch, a group or the features."""

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from clars.norms.rule import Contribution, Gradients
from clars.norms.strategy import chunks, squared_norms, wide

aten = torch.ops.aten


def affine_squares(
    gy: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, dim: int, needs: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Return the squared norms [B] of the examples' contributions to a scale and to a shift.

    gy and x are [B, ..., ...]; positions along `dim` are summed. mean and rstd broadcast against a piece of x
    (leading dimension 1) or have the batch dimension themselves. Their contributions to the scale and shift are the
    sums over positions of gy * (x - mean) * rstd and of gy. Centring first keeps the sums exact where |mean| >> std.
    """
    scale, shift = [], []
    accumulate = wide(gy.dtype)
    for piece in chunks(len(x), 3 * x.element_size() * x[0].numel(), x.device):
        centre, factor = (value if len(value) == 1 else value[piece] for value in (mean, rstd))
        if needs[0]:
            terms = (x[piece] - centre).mul_(gy[piece])
            if factor.shape[dim] == 1:  # the same at all positions that are summed
                sums = terms.sum(dim, dtype=accumulate).mul_(factor.squeeze(dim))
            else:
                sums = terms.mul_(factor).sum(dim, dtype=accumulate)
            scale.append(squared_norms(sums))
        if needs[1]:
            shift.append(squared_norms(gy[piece].sum(dim, dtype=accumulate)))
    return torch.cat(scale) if needs[0] else None, torch.cat(shift) if needs[1] else None


def channel_squares(
    gy: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, needs: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """As `affine_squares` for gy and x [B, C, T], with statistics [B, C, 1] or [1, C, 1], in one pass over both.

    Batch normalisation's own backward forms exactly these sums, per channel, and each example's channels may pass
    for channels of their own. It works a channel at a time, which pays where a channel has some positions.
    """
    examples, channels, positions = x.shape
    if positions < 16 or x.dtype not in (torch.float32, torch.float64) or x.dtype != gy.dtype:
        return affine_squares(gy, x, mean, rstd, 2, needs)
    each = [value.expand(examples, channels, 1).reshape(-1) for value in (mean, rstd)]
    flat = (1, examples * channels, positions)
    _, scale, shift = aten.native_batch_norm_backward(
        gy.reshape(flat), x.reshape(flat), None, None, None, *each, True, 0.0, (False, True, True)
    )
    squares = [squared_norms(value.view(examples, channels)) for value in (scale, shift)]
    return squares[0] if needs[0] else None, squares[1] if needs[1] else None


@dataclass(frozen=True, eq=False)
class BatchNorm:
    """Batch normalisation of x [B, C, ...] in training or evaluation mode.

    In training mode every example enters every other's statistics, so no example has a loss of its own. What is
    measured is each example's contribution to the gradient of scale and shift with the batch statistics as they are:
    the contributions sum to the gradient.
    """

    running_mean: Tensor | None
    running_var: Tensor | None
    training: bool
    momentum: float
    eps: float

    def forward(self, x, weight, bias):
        y, mean, rstd, reserve, kernel = torch._batch_norm_impl_index(
            x,
            weight,
            bias,
            self.running_mean,
            self.running_var,
            self.training,
            self.momentum,
            self.eps,
            torch.backends.cudnn.enabled,
        )
        if not self.training:  # the running statistics may move on before the backward pass
            mean, rstd = self.running_mean.clone(), (self.running_var + self.eps).rsqrt()
        return y, (mean, rstd, None if self.training else self.running_var.clone(), reserve, kernel)

    def backward(self, gy: Tensor, x: Tensor, weight: Tensor, saved, needs) -> Gradients:
        mean, rstd, variance, reserve, kernel = saved
        batch, running = ((mean, rstd), (None, None)) if self.training else ((None, None), (mean, variance))
        gx, gw, gb = aten._batch_norm_impl_index_backward(
            kernel, x, gy, weight, *running, *batch, self.training, self.eps, needs, reserve
        )
        squares = channel_squares(
            gy.reshape(*gy.shape[:2], -1),
            x.reshape(*x.shape[:2], -1),
            mean.view(1, -1, 1),
            rstd.view(1, -1, 1),
            needs[1:],
        )
        return _gradients(gx, gw, gb, squares, needs)


@dataclass(frozen=True)
class LayerNorm:
    """Layer normalisation of x [B, ..., *shape] over its last dimensions."""

    shape: tuple[int, ...]
    eps: float

    def forward(self, x, weight, bias):
        y, mean, rstd = aten.native_layer_norm(x, self.shape, weight, bias, self.eps)
        return y, (mean, rstd)

    def backward(self, gy: Tensor, x: Tensor, weight: Tensor, saved, needs) -> Gradients:
        mean, rstd = saved
        x, gy = x.contiguous(), gy.contiguous()
        gx, gw, gb = aten.native_layer_norm_backward(gy, x, self.shape, mean, rstd, weight, weight, needs)
        by_position = (len(x), -1, prod(self.shape))
        squares = affine_squares(
            gy.reshape(by_position),
            x.reshape(by_position),
            mean.reshape(len(x), -1, 1),
            rstd.reshape(len(x), -1, 1),
            1,
            needs[1:],
        )
        return _gradients(gx, gw, gb, squares, needs)


@dataclass(frozen=True)
class GroupNorm:
    """Group normalisation of x [B, C, ...] over `groups` groups of channels."""

    groups: int
    eps: float

    def forward(self, x, weight, bias):
        examples, channels = x.shape[:2]
        size = x.numel() // (examples * channels)
        y, mean, rstd = aten.native_group_norm(
            x.contiguous(), weight, bias, examples, channels, size, self.groups, self.eps
        )
        return y, (mean, rstd)

    def backward(self, gy: Tensor, x: Tensor, weight: Tensor, saved, needs) -> Gradients:
        mean, rstd = saved
        x, gy = x.contiguous(), gy.contiguous()
        examples, channels = x.shape[:2]
        size = x.numel() // (examples * channels)
        gx, gw, gb = aten.native_group_norm_backward(
            gy, x, mean, rstd, weight, examples, channels, size, self.groups, needs
        )
        per_channel = [value.repeat_interleave(channels // self.groups, 1).unsqueeze(2) for value in saved]
        by_channel = (examples, channels, -1)
        squares = channel_squares(gy.reshape(by_channel), x.reshape(by_channel), *per_channel, needs[1:])
        return _gradients(gx, gw, gb, squares, needs)


def _gradients(gx, gw, gb, squares, needs) -> Gradients:
    return Gradients(
        gx if needs[0] else None,
        Contribution(gw, squares[0]) if needs[1] else Contribution(),
        Contribution(gb, squares[1]) if needs[2] else Contribution(),
    )
