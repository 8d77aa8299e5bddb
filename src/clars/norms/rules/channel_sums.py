"""What examples contribute to a scale and a shift: sums over the positions of each."""

import torch
from torch import Tensor

from clars.native import operators, where
from clars.norms.methods.method import slices
from clars.precision import wide

aten = torch.ops.aten


def position_sums(
    gy: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, dim: int, memory: int | None
) -> tuple[Tensor, Tensor]:
    """Return the examples' contributions to a scale and to a shift: sums of gy * (x - mean) * rstd, and of gy.

    gy and x are [b, ..., ...]; positions along `dim` are summed. mean and rstd broadcast against x. Centring first
    keeps the sums exact where |mean| >> std.
    """
    scale, shift = [], []
    accumulate = wide(gy.dtype)
    for piece in _pieces(x, memory):
        centre, factor = (value if len(value) == 1 else value[piece] for value in (mean, rstd))
        terms = (x[piece] - centre).mul_(gy[piece])
        if factor.shape[dim] == 1:  # the same at all positions that are summed
            scale.append(terms.sum(dim, dtype=accumulate).mul_(factor.squeeze(dim)))
        else:
            scale.append(terms.mul_(factor).sum(dim, dtype=accumulate))
        shift.append(gy[piece].sum(dim, dtype=accumulate))
    return torch.cat(scale), torch.cat(shift)


def _pieces(x: Tensor, memory: int | None) -> list[slice]:
    """Return the examples of x a working set at a time; all at once under torch.compile, which keeps no terms."""
    if operators.is_suspended():
        return [slice(None)]
    return slices(len(x), 3 * x.element_size() * x[0].numel(), memory or where.working_set(x.device.type))


def channel_sums(gy: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, memory: int | None) -> tuple[Tensor, Tensor]:
    """As `position_sums` for gy and x [b, C, T] and statistics [b, C, 1] or [1, C, 1], in one pass over both.

    Batch normalisation's own backward forms exactly these sums, per channel, and each example's channels may pass
    for channels of their own. It works a channel at a time, which pays where a channel has some positions. Devices
    other than processors take it with a weight only.
    """
    examples, channels, positions = x.shape
    if (
        positions < 16
        or not where.on_processor(x)
        or x.dtype not in (torch.float32, torch.float64)
        or x.dtype != gy.dtype
    ):
        return position_sums(gy, x, mean, rstd, 2, memory)
    each = [value.expand(examples, channels, 1).flatten() for value in (mean, rstd)]
    flat = (1, examples * channels, positions)
    _, scale, shift = aten.native_batch_norm_backward(
        gy.reshape(flat), x.reshape(flat), None, None, None, *each, True, 0.0, (False, True, True)
    )
    return scale.view(examples, channels), shift.view(examples, channels)
