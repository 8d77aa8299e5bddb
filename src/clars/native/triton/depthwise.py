"""Weight gradient of a depthwise convolution, and squared norms of examples' or groups' own, for accelerators.

There is nothing to multiply as matrices: each tap of each channel is an inner product over positions. One kernel reads
gy and x, and leaves the sums of each group of examples; a second one squares and adds those, which are few.
"""

from __future__ import annotations  # the kernels' name `tl`, which is bound at its first use

from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from clars.native.triton.compiling import compiled, cover, covering, processors
from clars.native.triton.launching import Launch, plans
from clars.native.triton.layout import Form, Layout, copied, form

# Most taps of a kernel: each takes registers of every thread.
TAPS = 64

# Warps asked for per multiprocessor, by cutting the lines where channels and groups are few. They wait for loads much
# of the time, so that there have to be many.
WARPS_PER_PROCESSOR = 32

_UNSPECIALIZED = (
    *("examples", "group", "lines_each", "norms", "channel_blocks"),
    *("out_height", "out_width", "height", "width"),
    *("stride_h", "stride_w", "padding_h", "padding_w", "dilation_h", "dilation_w"),
)


def depthwise_products(
    gy: Tensor,
    x: Tensor,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    group: int = 1,
) -> tuple[Tensor, Tensor]:
    """Return the weight gradient summed over examples, and the squared norms of the sums over each group of examples.

    Args:
        gy: output gradients [B, C, Ho, Wo], of float16, bfloat16 or float32.
        x: inputs [B, C, H, W], of gy's type. Either is copied if its channels are not next to each other in memory.
        kernel, stride, padding, dilation: the convolution's, for (height, width); at most `TAPS` taps.
        group: how many consecutive examples make a group; the last may be smaller.

    Returns:
        gradient [C, 1, *kernel] and squared norms [number of groups], both float32 and accumulated in float32. The same
        inputs on the same device give the same bits.

    The first call for a new combination of types, tiles and alignments compiles, so make one before a CUDA graph is
    captured.
    """
    geometry = tuple(kernel), tuple(stride), tuple(padding), tuple(dilation)
    plan = _plan(form(gy), form(x), *geometry, group)
    sums, gradient, squares = (
        gy.new_empty(shape, dtype=torch.float32) for shape in (plan.sums, plan.taps, plan.squares)
    )
    plan.form_sums(copied(gy, plan.gy_layout), copied(x, plan.x_layout), sums)
    plan.add_and_square(sums, gradient, squares)
    return gradient.permute(2, 3, 0, 1), squares.sum(1) if squares.dim() > 1 else squares


class _Plan(NamedTuple):
    """Both launches for operands of a form, the layouts that these are copied to first, and what is written."""

    form_sums: Launch
    add_and_square: Launch
    gy_layout: Layout | None
    x_layout: Layout | None
    sums: tuple[int, int, int, int]  # the gradients of the groups, in parts to be added: [parts, groups, taps, C]
    taps: tuple[int, int, int, int]  # the gradient, taps first: [*kernel, C, 1]
    squares: tuple[int, ...]  # [groups, blocks], to be summed over the blocks, or [groups]


@plans
def _plan(
    gy: Form,
    x: Form,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    group: int,
) -> _Plan:
    layouts = gy.together, x.together
    gy, x = (operand.copied(layout) for operand, layout in zip((gy, x), layouts))
    (examples, channels, out_height, out_width), taps = gy.shape, prod(kernel)
    block_taps, block_c = max(2, covering(taps)), min(64, covering(channels))
    channel_blocks, norms = cover(channels, block_c), cover(examples, group)
    lines, warps = group * out_height, max(1, min(4, block_taps * block_c // 1024))
    wanted = cover(WARPS_PER_PROCESSOR * processors(gy.device), channel_blocks * norms * warps)
    lines_each = cover(lines, min(wanted, lines))
    parts = cover(lines, lines_each)
    values = (
        examples, group, lines_each, norms, channels, channel_blocks, out_height, out_width, *x.shape[2:], *stride,
        *padding, *dilation, *gy.strides, *x.strides, any(padding), *kernel, block_taps, block_c,
    )  # fmt: skip
    programs = channel_blocks * norms * parts
    made, options = compiled(_tap_sums, _UNSPECIALIZED), {"num_warps": warps, "enable_fp_fusion": True}
    form_sums = Launch(made, (programs,), values, gy.device, **options)

    block, block_norms = 64, 32
    size = taps * channels
    blocks = cover(size, block)
    made, values = compiled(_squares_and_total, ("parts", "norms")), (parts, norms, size, blocks, block, block_norms)
    add_and_square = Launch(made, (blocks,), values, gy.device, num_warps=4, enable_fp_fusion=True)
    squares = (norms, blocks) if blocks > 1 else (norms,)
    return _Plan(form_sums, add_and_square, *layouts, (parts, norms, taps, channels), (*kernel, channels, 1), squares)


def _tap_sums(
    gy, x, sums, examples, group, lines_each, norms, channels, channel_blocks, out_height, out_width,
    height, width, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w,
    gy_b, gy_c, gy_h, gy_w, x_b, x_c, x_h, x_w,
    PADDED: tl.constexpr, KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr,
    BLOCK_TAPS: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The taps of some channels, summed over some lines of one group's examples, a position at a time.

    All taps' places are read at once. What they share with those of the next positions comes from the cache.
    """
    program = tl.program_id(0)
    block, norm, part = program % channel_blocks, program // channel_blocks % norms, program // channel_blocks // norms
    tap, c = tl.arange(0, BLOCK_TAPS)[:, None], (block * BLOCK_C + tl.arange(0, BLOCK_C))[None, :]
    down, across = tap // KERNEL_W * dilation_h - padding_h, tap % KERNEL_W * dilation_w - padding_w
    in_gradient = (tap < KERNEL_H * KERNEL_W) & (c < channels)
    gy += c * gy_c
    x += c * x_c + down * x_h + across * x_w

    own = tl.zeros((BLOCK_TAPS, BLOCK_C), tl.float32)
    lines = tl.minimum(group, examples - norm * group) * out_height  # the last group may have fewer examples
    for line in range(part * lines_each, tl.minimum((part + 1) * lines_each, lines)):
        example, out_row = norm * group + line // out_height, line % out_height
        row = out_row * stride_h
        of_gy, of_x = gy + example.to(tl.int64) * gy_b + out_row * gy_h, x + example.to(tl.int64) * x_b + row * x_h
        in_line = in_gradient
        if PADDED:
            in_line = in_line & (row + down >= 0) & (row + down < height)
        for out_column in range(out_width):
            column = out_column * stride_w
            seen = in_line
            if PADDED:
                seen = seen & (column + across >= 0) & (column + across < width)
            number = tl.load(of_gy + out_column * gy_w, c < channels, 0.0).to(tl.float32)
            own += number * tl.load(of_x + column * x_w, seen, 0.0).to(tl.float32)
    place = ((part * norms + norm).to(tl.int64) * KERNEL_H * KERNEL_W + tap) * channels + c
    tl.store(sums + place, own, in_gradient)


def _squares_and_total(
    sums, gradient, squares, parts, norms, size, blocks, BLOCK: tl.constexpr, BLOCK_NORMS: tl.constexpr
):
    """Some numbers of the gradient, and their share of every group's square."""
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK_NORMS, BLOCK), tl.float32)
    for first in range(0, norms, BLOCK_NORMS):
        norm = first + tl.arange(0, BLOCK_NORMS)
        inside = (norm < norms)[:, None] & (column < size)[None, :]
        own = tl.zeros((BLOCK_NORMS, BLOCK), tl.float32)
        for part in range(parts):
            row = (part * norms + norm).to(tl.int64) * size
            own += tl.load(sums + row[:, None] + column[None, :], inside, 0.0)
        tl.store(squares + norm * blocks + tl.program_id(0), tl.sum(own * own, 1), norm < norms)
        total += own
    tl.store(gradient + column, tl.sum(total, 0), column < size)
