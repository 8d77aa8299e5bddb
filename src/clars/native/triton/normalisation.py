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

from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from clars.native.triton import normalisation_kernels as kernels
from clars.native.triton.compiling import compiled, cover, covering, processors
from clars.native.triton.launching import Launch, plans
from clars.native.triton.layout import Form, Layout, copied, form

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
        gy, x: output gradients and inputs [B, C, ...], of float16, bfloat16 or float32 and any strides; they are copied
            first where no one stride leads from each position to the next.
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
        gy, x: output gradients and inputs [B, T, D], of float16, bfloat16 or float32 and any strides; they are copied
            first where features lie apart in memory.
        mean, rstd: the statistics of x's rows, B * T numbers.
        weight: the scale [D].
        needs_input, first, last, group: as for `batch_norm_backward`.

    Returns:
        As `batch_norm_backward`, with D for C, and a gradient of x that is contiguous.
    """
    mean, rstd, weight = mean.contiguous(), rstd.contiguous(), weight.contiguous()
    plan = _by_row_plan(form(gy), form(x), mean.dtype, rstd.dtype, weight.dtype, needs_input, first, last, group)
    gy, x, parts, means = _prepared(plan, gy, x, mean)
    if plan.begin is not None:
        plan.begin(gy, x, weight, mean, rstd, means)
    gx = x.new_empty_strided(*plan.gx) if needs_input else None
    plan.rest(gy, x, x if gx is None else gx, weight, mean, rstd, means, parts)
    return gx, *_combined(plan, parts, weight, parts)


def _by_channel(gy, x, mean, rstd, weight, groups, training, needs_input, measured) -> Backward:
    """As `batch_norm_backward`, or, with groups, as `group_norm_backward`."""
    mean, rstd, weight = mean.contiguous(), rstd.contiguous(), weight.contiguous()
    plan = _by_channel_plan(
        form(gy), form(x), mean.dtype, rstd.dtype, weight.dtype, groups, training, needs_input, *measured
    )
    gy, x, parts, means = _prepared(plan, gy, x, mean)
    plan.begin(gy, x, mean, rstd, parts)
    combined = _combined(plan, parts, weight, parts if means is mean else means)
    if not needs_input:
        return None, *combined
    gx = x.new_empty_strided(*plan.gx)
    plan.rest(gy, x, gx, weight, mean, rstd, means)
    return gx, *combined


def _prepared(plan: "_Plan", gy: Tensor, x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the operands in the plan's layouts, and memory for the parts and means; `mean` where there are none."""
    gy, x = copied(gy, plan.gy_layout), copied(x, plan.x_layout)
    means = mean if plan.means is None else mean.new_empty(plan.means, dtype=torch.float32)
    return gy, x, x.new_empty(plan.parts, dtype=torch.float32), means


def _combined(plan: "_Plan", parts: Tensor, weight: Tensor, means: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of scale and shift, and the squared norms; write the means that the gradient of x needs."""
    channels, norms = plan.parts[2], plan.norms
    results = parts.new_empty(channels), parts.new_empty(channels), parts.new_empty(norms), parts.new_empty(norms)
    plan.combine(parts, weight, *results, means)
    return results


class _Plan(NamedTuple):
    """What is launched for operands of a form, the layouts that these are copied to first, and what is written."""

    begin: Launch | None  # `sums`; or `row_means`, where a row is long
    combine: Launch
    rest: Launch  # `input_gradient`, or `layer_norm_rows`
    gy_layout: Layout | None
    x_layout: Layout | None
    parts: tuple[int, int, int]  # [2, rows, channels]
    norms: int
    means: tuple[int, int] | None  # [2, statistics]
    gx: tuple[tuple[int, ...], tuple[int, ...]]  # its shape and strides


@plans
def _by_row_plan(
    gy: Form,
    x: Form,
    of_mean: torch.dtype,
    of_rstd: torch.dtype,
    of_weight: torch.dtype,
    needs_input: bool,
    first: int,
    last: int,
    group: int,
) -> _Plan:
    """Return the plan for layer normalisation. The launches depend on the types of all their tensors."""
    layouts = [None if operand.stride[2] == 1 else torch.contiguous_format for operand in (gy, x)]
    gy, x = (operand.copied(layout) for operand, layout in zip((gy, x), layouts))
    examples, positions, features = x.shape
    dense = x.copied(torch.contiguous_format)
    cut = _cut(examples, features, positions, True, True, x.device)
    whole, rows = cut.block_c >= features, examples * positions
    steps = gy.stride[:2] + x.stride[:2]
    begin = None
    if needs_input and not whole:
        made, values = compiled(kernels.row_means, _ROW_MEANS_UNSPECIALIZED), (features, positions, rows, *steps, TILE)
        begin = Launch(made, (rows,), values, gy.device, num_warps=4, enable_fp_fusion=True)
    values = (
        examples * cut.splits, cut.splits, cut.steps, features, positions, rows, *steps,
        *(dense if needs_input else x).stride[:2], needs_input, whole, cut.block_t, cut.block_c,
    )  # fmt: skip
    rest = Launch(
        compiled(kernels.layer_norm_rows, _UNSPECIALIZED), (cut.programs(examples, features),), values, gy.device,
        num_warps=cut.warps(features), enable_fp_fusion=True,
    )  # fmt: skip
    combine, norms = _combine(gy.device, examples, features, (first, last, group), cut.splits, 0, 1, 1, "none")
    gx = dense.shape, dense.stride
    means = None if begin is None else (2, rows)
    return _Plan(begin, combine, rest, *layouts, (2, examples * cut.splits, features), norms, means, gx)


@plans
def _by_channel_plan(
    gy: Form,
    x: Form,
    of_mean: torch.dtype,
    of_rstd: torch.dtype,
    of_weight: torch.dtype,
    groups: int | None,
    training: bool,
    needs_input: bool,
    first: int,
    last: int,
    group: int,
) -> _Plan:
    """Return the plan for batch or group normalisation. The launches depend on the types of all their tensors."""
    layouts = [None if operand.position_stride is not None else torch.contiguous_format for operand in (gy, x)]
    gy, x = (operand.copied(layout) for operand, layout in zip((gy, x), layouts))
    (examples, channels), positions = x.shape[:2], prod(x.shape[2:])
    each, members = (0, 1) if groups is None else (groups, channels // groups)
    statistics = channels if groups is None else examples * groups
    flat_gy, flat_x = (
        torch.empty_strided(operand.shape, operand.stride, device="meta").reshape(examples, channels, positions)
        for operand in (gy, x)
    )
    flat_gx = torch.empty_like(flat_x)  # dense, and its dimensions ordered as x's are
    gx = x.shape, flat_gx.view(x.shape).stride()
    gy_steps, x_steps = flat_gy.stride(), flat_x.stride()
    channels_last = positions == 1 or x_steps[1] < x_steps[2]
    cut = _cut(examples, channels, positions, channels_last, False, x.device)
    grid, blocks = (cut.programs(examples, channels),), (channels_last, cut.block_c, cut.block_t)
    options = {"num_warps": cut.warps(channels if channels_last else positions), "enable_fp_fusion": True}
    centred = needs_input and training
    values = (
        examples * cut.splits, cut.splits, cut.steps, channels, positions, each, members, *gy_steps, *x_steps, *blocks,
    )  # fmt: skip
    begin = Launch(compiled(kernels.sums, _UNSPECIALIZED), grid, values, gy.device, **options)
    kind = "none" if not centred else "channel" if groups is None else "group"
    count = positions * (examples if groups is None else members)
    means = (2, statistics) if centred else None
    averaged = statistics if centred else 0, members, count, kind
    combine, norms = _combine(gy.device, examples, channels, (first, last, group), cut.splits, *averaged)
    values = (
        cut.splits, cut.steps, channels, positions, statistics, each, members, *gy_steps, *x_steps, *flat_gx.stride(),
        centred, *blocks,
    )  # fmt: skip
    rest = Launch(compiled(kernels.input_gradient, _UNSPECIALIZED), grid, values, gy.device, **options)
    return _Plan(begin, combine, rest, *layouts, (2, examples * cut.splits, channels), norms, means, gx)


def _combine(
    device: torch.device,
    examples: int,
    channels: int,
    measured: tuple[int, int, int],
    splits: int,
    statistics: int,
    members: int,
    count: int,
    kind: str,
) -> tuple[Launch, int]:
    """Return the launch of `combine`, and the number of squared norms."""
    first, last, group = measured
    norms, groups = cover(last - first, group), channels // members
    mean_c = min(_MEAN, covering(members))
    mean_g = min(_MEAN // mean_c, covering(groups)) if kind == "group" else 1
    programs = norms + cover(channels, _SUM[1])
    programs += examples * cover(groups, mean_g) if kind == "group" else 0
    values = (
        examples * splits, splits, channels, norms, first, last, group, statistics, groups, members, count, kind,
        *_NORM, *_SUM, mean_g, mean_c,
    )  # fmt: skip
    made = compiled(kernels.combine, _COMBINE_UNSPECIALIZED)
    return Launch(made, (programs,), values, device, num_warps=8, enable_fp_fusion=True), norms


def _cut(
    examples: int, channels: int, positions: int, channels_last: bool, whole_row: bool, device: torch.device
) -> _Cut:
    """Return blocks of powers of two, the fast dimension's a whole row where it may be, and enough runs of them."""
    slow, fast = (positions, channels) if channels_last else (channels, positions)
    block_fast = min(WHOLE_ROW, covering(fast)) if whole_row else _fast_block(fast)
    block_slow = min(max(1, TILE // block_fast), covering(slow))
    block_fast = min(max(block_fast, TILE // block_slow), covering(fast))
    block_c, block_t = (block_fast, block_slow) if channels_last else (block_slow, block_fast)
    runs = max(1, cover(positions, block_t))
    wanted = cover(PROGRAMS_PER_PROCESSOR * processors(device), max(1, examples * cover(channels, block_c)))
    steps = cover(runs, min(wanted, runs))
    return _Cut(block_c, block_t, cover(runs, steps), steps)


def _fast_block(size: int) -> int:
    """Return a power of two for the fast dimension, smaller where a large one would cover much padding."""
    block = min(LONG, covering(size))
    while block > SHORT and cover(size, block) * block > 1.25 * size:
        block //= 2
    return block
