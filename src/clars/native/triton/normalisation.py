"""Backward passes of normalisations, with each example's contributions to scale and shift, for accelerators.

For xhat = (x - mean) * rstd, an example contributes the sums over its positions of gy * xhat to the gradient of the
scale, and of gy to that of the shift. The sums over the batch, which the gradient of x needs anyway, are formed by way
of the examples' own, so that their norms cost next to nothing:

    sums            reads gy and x once, and writes an example's sums, cut into runs of positions
    combine         from these few numbers: gradients, squared norms, and the means that the gradient of x needs
    input_gradient  reads gy and x once more, and writes the gradient of x

Layer normalisation's means are over a row, which fits in registers: one kernel does the first and the last.

Everything is accumulated in float32, in a fixed order: the same inputs on the same device give the same bits. The first
call for a new combination of types, blocks and alignments compiles, so make one before a CUDA graph is captured.
"""

from functools import lru_cache
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from clars.native.triton import normalisation_kernels as kernels
from clars.native.triton.compiling import compiled, cover, processors

DTYPES = (torch.float16, torch.bfloat16, torch.float32)

# The gradient of x, those of scale and shift, and the squared norms of the examples' contributions to these two.
Backward = tuple[Tensor | None, Tensor, Tensor, Tensor, Tensor]

# Programs asked for per multiprocessor, by cutting the positions: as many as run at once hide each other's waits for
# memory, and each cut costs two more float32 numbers per example and channel.
PROGRAMS_PER_PROCESSOR = 8

# Numbers that a program takes from gy, and from x, at a time. In the dimension that is contiguous in memory a block is
# between SHORT, half a cache line of 16-bit numbers, and LONG; longer where the other one is short.
TILE = 2048
LONG, SHORT = 128, 32

# Features of a row that stay in registers; longer rows are read a second time.
WHOLE_ROW = 4096

# The blocks of `combine`: rows and channels of a norm, rows and channels of a sum over the batch, numbers of a mean.
_NORM, _SUM, _MEAN = (4, 512), (512, 8), 512

# The arguments that shall not make a kernel of their own where they are 1 or a multiple of 16. The other sizes and the
# strides do: they tell the compiler which loads are contiguous, aligned and whole.
_UNSPECIALIZED = ("rows", "splits", "steps", "statistics", "each", "members")
_COMBINE_UNSPECIALIZED = (
    "rows",
    "splits",
    "norms",
    "first",
    "last",
    "group",
    "statistics",
    "groups",
    "members",
    "count",
)
_ROW_MEANS_UNSPECIALIZED = ("positions", "statistics")


class _Cut(NamedTuple):
    """How an example [slow dimension, fast dimension] is cut into blocks, and its positions into runs of blocks."""

    block_c: int
    block_t: int
    splits: int
    steps: int

    def programs(self, examples: int, channels: int) -> int:
        return examples * self.splits * cover(channels, self.block_c)

    def warps(self, length: int) -> int:
        """Return how many warps have few enough numbers a thread, where rows of a length lie together in memory.

        Where rows begin anywhere, each number is loaded from an address of its own, which takes registers as well.
        """
        return max(4, self.block_c * self.block_t // (32 * (8 if length % 16 else 16)))


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
    """Return what the backward pass of batch normalisation yields, and the squared norms of examples' contributions.

    Args:
        gy, x: output gradients and inputs [B, C, ...], of `DTYPES` and any strides; they are copied first where no one
            stride leads from each position to the next.
        mean, rstd: the statistics [C] by which x was normalised.
        weight: the scale [C].
        training: whether the statistics are the batch's, on which the gradient of x depends.
        needs_input: whether the gradient of x is wanted.
        first, last: the squared norms are those of examples first..last - 1.
        group: how many consecutive ones of these are summed before a norm is taken; the last group may be smaller.

    Returns:
        gradient of x, or None, of x's type and in its memory format; gradients of scale and shift [C], over the whole
        batch; squared norms of the contributions to scale, and to shift, [(last - first) / group] rounded up. All but
        the gradient of x are float32.
    """
    return _by_channel(gy, x, mean, rstd, weight, None, training, needs_input, (first, last, group))


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
    """Return what the backward pass of group normalisation yields, and the squared norms of examples' contributions.

    Instance normalisation by statistics of the input is the case of as many groups as channels.

    Args:
        gy, x, weight, needs_input, first, last, group: as for `batch_norm_backward`.
        mean, rstd: the statistics [B, groups] of x.
        groups: of channels; C is a multiple of it.

    Returns:
        As `batch_norm_backward`.
    """
    return _by_channel(gy, x, mean, rstd, weight, groups, True, needs_input, (first, last, group))


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
    """Return what the backward pass of layer normalisation yields, and the squared norms of examples' contributions.

    Args:
        gy, x: output gradients and inputs [B, T, D], of `DTYPES` and any strides; they are copied first where features
            lie apart in memory.
        mean, rstd: the statistics of x's rows, B * T numbers.
        weight: the scale [D].
        needs_input, first, last, group: as for `batch_norm_backward`.

    Returns:
        As `batch_norm_backward`, with D for C, and a gradient of x that is contiguous.
    """
    gy, x = (value if value.stride(2) == 1 else value.contiguous() for value in (gy, x))
    mean, rstd, weight = mean.contiguous(), rstd.contiguous(), weight.contiguous()
    examples, positions, features = x.shape
    cut = _cut(examples, features, positions, True, True, x.device)
    whole = cut.block_c >= features
    parts = _parts(x, cut, features)
    gx = torch.empty_like(x, memory_format=torch.contiguous_format) if needs_input else None
    means = mean if whole or not needs_input else mean.new_empty((2, examples * positions), dtype=torch.float32)
    with torch.cuda.device_of(gy):  # triton launches on the current device, whatever the tensors'
        if means is not mean:
            compiled(kernels.row_means, _ROW_MEANS_UNSPECIALIZED)[(examples * positions,)](
                gy, x, weight, mean, rstd, means, features, positions, examples * positions, *gy.stride()[:2],
                *x.stride()[:2], TILE, num_warps=4, enable_fp_fusion=True,
            )  # fmt: skip
        out = x if gx is None else gx
        compiled(kernels.layer_norm_rows, _UNSPECIALIZED)[(cut.programs(examples, features),)](
            gy, x, out, weight, mean, rstd, means, parts, examples * cut.splits, cut.splits, cut.steps, features,
            positions, examples * positions, *gy.stride()[:2], *x.stride()[:2], *out.stride()[:2], needs_input, whole,
            cut.block_t, cut.block_c, num_warps=cut.warps(features), enable_fp_fusion=True,
        )  # fmt: skip
        return gx, *_combine(parts, weight, None, (first, last, group), cut.splits, 1, 1, "none")


def _by_channel(gy, x, mean, rstd, weight, groups, training, needs_input, measured) -> Backward:
    """As `batch_norm_backward`, or, with groups, as `group_norm_backward`."""
    examples, channels = x.shape[:2]
    positions = prod(x.shape[2:])
    shape = (examples, channels, positions)
    gy, flat = gy.reshape(shape), x.reshape(shape)
    mean, rstd, weight = mean.contiguous(), rstd.contiguous(), weight.contiguous()
    each, members = (0, 1) if groups is None else (groups, channels // groups)
    channels_last = positions == 1 or flat.stride(1) < flat.stride(2)
    cut = _cut(examples, channels, positions, channels_last, False, x.device)
    grid, blocks = (cut.programs(examples, channels),), (channels_last, cut.block_c, cut.block_t)
    warps = cut.warps(channels if channels_last else positions)
    parts = _parts(x, cut, channels)
    centred = needs_input and training
    means = mean.new_empty((2, mean.numel()), dtype=torch.float32) if centred else None
    count = positions * (examples if groups is None else members)
    kind = "none" if means is None else "channel" if groups is None else "group"
    with torch.cuda.device_of(gy):  # triton launches on the current device, whatever the tensors'
        compiled(kernels.sums, _UNSPECIALIZED)[grid](
            gy, flat, mean, rstd, parts, examples * cut.splits, cut.splits, cut.steps, channels, positions, each,
            members, *gy.stride(), *flat.stride(), *blocks, num_warps=warps, enable_fp_fusion=True,
        )  # fmt: skip
        combined = _combine(parts, weight, means, measured, cut.splits, members, count, kind)
        if not needs_input:
            return None, *combined
        gx = torch.empty_like(flat)
        compiled(kernels.input_gradient, _UNSPECIALIZED)[grid](
            gy, flat, gx, weight, mean, rstd, mean if means is None else means, cut.splits, cut.steps, channels,
            positions, mean.numel(), each, members, *gy.stride(), *flat.stride(), *gx.stride(), centred, *blocks,
            num_warps=warps, enable_fp_fusion=True,
        )  # fmt: skip
    return gx.view(x.shape), *combined


def _combine(parts, weight, means, measured, splits, members, count, kind) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of scale and shift, and the squared norms; write the means that the gradient of x needs."""
    _, rows, channels = parts.shape
    first, last, group = measured
    norms, groups, statistics = cover(last - first, group), channels // members, 0 if means is None else means.shape[1]
    scale, shift = parts.new_empty(channels), parts.new_empty(channels)
    scale_squares, shift_squares = parts.new_empty(norms), parts.new_empty(norms)
    mean_c = min(_MEAN, _power_of_two(members))
    mean_g = min(_MEAN // mean_c, _power_of_two(groups)) if kind == "group" else 1
    programs = norms + cover(channels, _SUM[1])
    programs += rows // splits * cover(groups, mean_g) if kind == "group" else 0
    compiled(kernels.combine, _COMBINE_UNSPECIALIZED)[(programs,)](
        parts, weight, scale, shift, scale_squares, shift_squares, parts if means is None else means, rows, splits,
        channels, norms, first, last, group, statistics, groups, members, count, kind, *_NORM, *_SUM, mean_g, mean_c,
        num_warps=8, enable_fp_fusion=True,
    )  # fmt: skip
    return scale, shift, scale_squares, shift_squares


def _parts(x: Tensor, cut: _Cut, channels: int) -> Tensor:
    return x.new_empty((2, len(x) * cut.splits, channels), dtype=torch.float32)


@lru_cache(maxsize=1024)
def _cut(
    examples: int, channels: int, positions: int, channels_last: bool, whole_row: bool, device: torch.device
) -> _Cut:
    """Return blocks of powers of two, the fast dimension's a whole row where it may be, and enough runs of them."""
    slow, fast = (positions, channels) if channels_last else (channels, positions)
    block_fast = min(WHOLE_ROW, _power_of_two(fast)) if whole_row else _fast_block(fast)
    block_slow = min(max(1, TILE // block_fast), _power_of_two(slow))
    block_fast = min(max(block_fast, TILE // block_slow), _power_of_two(fast))
    block_c, block_t = (block_fast, block_slow) if channels_last else (block_slow, block_fast)
    runs = max(1, cover(positions, block_t))
    wanted = cover(PROGRAMS_PER_PROCESSOR * processors(device), max(1, examples * cover(channels, block_c)))
    steps = cover(runs, min(wanted, runs))
    return _Cut(block_c, block_t, cover(runs, steps), steps)


def _fast_block(size: int) -> int:
    """Return a power of two for the fast dimension, smaller where a large one would cover much padding."""
    block = min(LONG, _power_of_two(size))
    while block > SHORT and cover(size, block) * block > 1.25 * size:
        block //= 2
    return block


def _power_of_two(size: int) -> int:
    """Return the smallest power of two that covers `size`."""
    return 1 << (size - 1).bit_length()
