"""Weight gradient of a convolution, and squared norms of examples' or groups' own, in one kernel, for accelerators.

The product method writes each example's gradient to memory, only to square and sum it. Here a program holds one tile
of the gradient in registers: it forms the tile of an example, or of a group of them, adds the tile's square to the norm
and the tile to the batch's total, and goes on to the next. The patches of x are gathered as they are read (no im2col).
"""

from __future__ import annotations  # the kernel's name `tl`, which is bound at its first use

from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from clars.native.triton.compiling import compiled, cover, interpreted, power_of_two, processors
from clars.native.triton.launching import Launch, plans
from clars.native.triton.layout import Form, Layout, copied, form

# Programs asked for per multiprocessor, by cutting the batch. Several, so that the last ones to finish leave little
# of the device idle; each cut of the batch costs one more float32 gradient in memory.
PROGRAMS_PER_PROCESSOR = 8

# The arguments that shall not make a kernel of their own where they are 1 or a multiple of 16. The other sizes and the
# strides do: they tell the compiler which loads are contiguous, aligned and whole.
_UNSPECIALIZED = (
    *("examples", "examples_each", "norms", "tiles_p", "tiles_d", "rows", "height", "width", "kernel_w"),
    *("stride_h", "stride_w", "padding_h", "padding_w", "dilation_h", "dilation_w"),
)


def fused_products(
    gy: Tensor,
    x: Tensor,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int = 1,
    group: int = 1,
) -> tuple[Tensor, Tensor]:
    """Return the weight gradient summed over examples, and the squared norms of the sums over each group of examples.

    Args:
        gy: output gradients [B, P, Ho, Wo], of float16, bfloat16 or float32 and any strides.
        x: inputs [B, C, H, W], of gy's type and any strides; channels next to each other in memory are read fastest.
        kernel, stride, padding, dilation: the convolution's, for (height, width).
        groups: the convolution's; C and P are multiples of it.
        group: how many consecutive examples make a group; the last may be smaller.

    Returns:
        gradient [P, C / groups, *kernel] and squared norms [number of groups of examples], both float32 and accumulated
        in float32. The gradient's channels are its contiguous dimension. The same inputs on the same device give the
        same bits.

    The first call for a new combination of types, tiles and alignments compiles, so make one before a CUDA graph is
    captured.
    """
    plan = _plan(form(gy), form(x), tuple(kernel), tuple(stride), tuple(padding), tuple(dilation), groups, group, True)
    parts, squares = (gy.new_empty(shape, dtype=torch.float32) for shape in (plan.parts, plan.squares))
    plan.launch(copied(gy, plan.gy_layout), copied(x, plan.x_layout), parts, squares)
    gradient = parts.sum(0) if plan.parts[0] > 1 else parts
    return gradient.as_strided(*plan.gradient), _summed(squares)


def fused_squares(
    gy: Tensor,
    x: Tensor,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int = 1,
    group: int = 1,
) -> Tensor:
    """Return the squared norms alone. See `fused_products`.

    A program that keeps no total has room for a tile twice as wide, which reads less for each product.
    """
    plan = _plan(form(gy), form(x), tuple(kernel), tuple(stride), tuple(padding), tuple(dilation), groups, group, False)
    squares = gy.new_empty(plan.squares, dtype=torch.float32)
    plan.launch(copied(gy, plan.gy_layout), copied(x, plan.x_layout), squares, squares)
    return _summed(squares)


def _summed(squares: Tensor) -> Tensor:
    return squares.sum(0) if squares.dim() > 1 else squares


class _Plan(NamedTuple):
    """A launch for operands of a form, the layouts that they are copied to first, and the shapes of the results."""

    launch: Launch
    gy_layout: Layout | None
    x_layout: Layout | None
    parts: tuple[int, int, int]  # gradients, each summed over a share of the batch: [shares, P, columns]
    squares: tuple[int, ...]  # [tiles, norms], to be summed over the tiles, or [norms]
    gradient: tuple[tuple[int, ...], tuple[int, ...]]  # its shape and strides


@plans
def _plan(
    gy: Form,
    x: Form,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    group: int,
    total: bool,
) -> _Plan:
    """Return the plan of a call. Without `total` there is no gradient."""
    layouts = [None if operand.is_near else torch.contiguous_format for operand in (gy, x)]
    gy, x = (operand.copied(layout) for operand, layout in zip((gy, x), layouts))
    examples, outputs, channels = x.shape[0], gy.shape[1] // groups, x.shape[1] // groups
    columns, positions = channels * prod(kernel), prod(gy.shape[2:])
    bare = prod(kernel) == 1 and set(stride) == {1} and not any(padding)
    gy_step, x_step = gy.position_stride, x.position_stride if bare else None
    block_p, block_d, block_t = _blocks(gy, x, outputs, channels, prod(kernel), total)
    tiles_p, tiles_d = cover(outputs, block_p), cover(columns, block_d)
    tiles, norms = groups * tiles_p * tiles_d, cover(examples, group)
    norms_each, splits = _split(norms, tiles, gy.device)
    values = (
        examples, norms_each * group, group, norms, outputs, channels, columns, tiles_p, tiles_d, gy.shape[1],
        gy.shape[3], positions, *x.shape[2:], kernel[1], *stride, *padding, *dilation, *gy.strides, gy_step or 0,
        *x.strides, x_step or 0, gy.channels_together, x.channels_together, gy_step is not None, x_step is not None,
        prod(kernel) == 1 or channels % block_d == 0, any(padding), total, interpreted(), block_p, block_d, block_t,
    )  # fmt: skip
    warps = 8 if block_p * block_d >= 64 * 64 else 4
    launch = Launch(
        compiled(_products, _UNSPECIALIZED), (tiles, splits), values, gy.device, num_warps=warps, num_stages=4,
        enable_fp_fusion=True,
    )  # fmt: skip
    gradient = (gy.shape[1], channels, *kernel), (columns, 1, kernel[1] * channels, channels)
    return _Plan(launch, *layouts, (splits, gy.shape[1], columns), (tiles, norms) if tiles > 1 else (norms,), gradient)


def _products(
    gy, x, parts, squares, examples, examples_each, together, norms, outputs, channels, columns, tiles_p, tiles_d, rows,
    out_width, positions, height, width, kernel_w,
    stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w,
    gy_b, gy_c, gy_h, gy_w, gy_step, x_b, x_c, x_h, x_w, x_step,
    GY_CHANNELS_LAST: tl.constexpr, X_CHANNELS_LAST: tl.constexpr, GY_STEPS: tl.constexpr, X_STEPS: tl.constexpr,
    ONE_TAP: tl.constexpr, PADDED: tl.constexpr, TOTAL: tl.constexpr, INTERPRETED: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """One tile [BLOCK_P, BLOCK_D] of one group's gradient [outputs, columns], over one run of the examples.

    A column d is (kernel row, kernel column, channel), channels fastest, and a position t is (row, column) of gy.
    Each tile is read with the dimension that is contiguous in memory last: neighbouring threads, neighbouring numbers.

    GY_STEPS: whether gy's positions lie gy_step apart. X_STEPS: whether x has the same positions, x_step apart.
    ONE_TAP: whether a tile's columns have the same tap. TOTAL: whether the sum over the examples is wanted too.
    """
    tile, split = tl.program_id(0), tl.program_id(1)
    group = tile // (tiles_p * tiles_d)
    first_d = tile % tiles_d * BLOCK_D
    p = tile // tiles_d % tiles_p * BLOCK_P + tl.arange(0, BLOCK_P)
    d = first_d + tl.arange(0, BLOCK_D)
    p_in = p[None, :] if GY_CHANNELS_LAST else p[:, None]
    d_in = d[None, :] if X_CHANNELS_LAST else d[:, None]

    # Where an output (column) lies relative to its position's place in gy (x).
    tap = first_d // channels if ONE_TAP else d_in // channels
    tap_h, tap_w = tap // kernel_w * dilation_h - padding_h, tap % kernel_w * dilation_w - padding_w
    gy += (group * outputs + p_in) * gy_c
    x += (group * channels + d_in - tap * channels) * x_c + tap_h * x_h + tap_w * x_w

    first = split * examples_each
    steps = tl.cdiv(positions, BLOCK_T)
    own = tl.zeros((BLOCK_P, BLOCK_D), tl.float32)
    if TOTAL:
        total = tl.zeros((BLOCK_P, BLOCK_D), tl.float32)
    # One loop over examples and positions, so that an example's first loads overlap its predecessor's last products. A
    # program's examples are whole groups, but for the batch's last.
    for step in range(tl.minimum(examples_each, examples - first) * steps):
        example = first + step // steps
        t = step % steps * BLOCK_T + tl.arange(0, BLOCK_T)
        t_gy = t[:, None] if GY_CHANNELS_LAST else t[None, :]
        t_x = t[:, None] if X_CHANNELS_LAST else t[None, :]
        at_gy = t_gy * gy_step if GY_STEPS else t_gy // out_width * gy_h + t_gy % out_width * gy_w
        seen = t_x < positions
        if X_STEPS:
            at_x = t_x * x_step
        else:
            row, column = t_x // out_width * stride_h, t_x % out_width * stride_w
            at_x = row * x_h + column * x_w
            if PADDED:
                row, column = row + tap_h, column + tap_w
                seen = seen & (row >= 0) & (row < height) & (column >= 0) & (column < width)
        gy_tile = tl.load(gy + example.to(tl.int64) * gy_b + at_gy, (t_gy < positions) & (p_in < outputs), 0.0)
        x_tile = tl.load(x + example.to(tl.int64) * x_b + at_x, seen & (d_in < columns), 0.0)
        if GY_CHANNELS_LAST:
            gy_tile = tl.trans(gy_tile)
        if not X_CHANNELS_LAST:
            x_tile = tl.trans(x_tile)
        if INTERPRETED:  # whose dot takes bfloat16 for integers; the products are exact in float32 all the same
            gy_tile, x_tile = gy_tile.to(tl.float32), x_tile.to(tl.float32)
        own = tl.dot(gy_tile, x_tile, own, input_precision="ieee")  # "ieee": no tf32 where the inputs are float32
        if (step % steps == steps - 1) & (((example + 1) % together == 0) | (example == examples - 1)):
            tl.store(squares + tile.to(tl.int64) * norms + example // together, tl.sum(own * own))
            if TOTAL:
                total += own
            own = tl.zeros((BLOCK_P, BLOCK_D), tl.float32)

    if TOTAL:
        place = (split * rows + group * outputs + p[:, None]).to(tl.int64) * columns + d[None, :]
        tl.store(parts + place, total, (p[:, None] < outputs) & (d[None, :] < columns))


def _blocks(gy: Form, x: Form, outputs: int, channels: int, taps: int, total: bool) -> tuple[int, int, int]:
    """Return the tile's outputs, columns and positions at a time: powers of two, 16 at least, as tl.dot wants.

    An example's tile, the total and the addresses of the next loads share the registers. Only loads of many numbers
    at once, from aligned channels, and products in the tensor cores leave room for a tile wider than 64.
    """
    whole, narrow = gy.aligned(outputs) and x.aligned(channels), gy.dtype != torch.float32
    wide = whole and narrow
    block_p = _block(outputs, 128 if wide else 64)
    block_t = power_of_two(prod(gy.shape[2:]), 32 if whole or narrow or not total else 16)
    block_d = _block(channels * taps, (128 if total or block_p < 128 else 256) if wide else 64)
    if taps > 1 and channels % 64 == 0:  # so that a tile has one tap, and a position is looked up but once
        block_d = min(block_d, channels & -channels)
    return block_p, block_d, block_t


def _block(size: int, most: int) -> int:
    """Return the power of two of 16..`most` that covers `size`, or less where that would mostly cover padding."""
    block = power_of_two(size, most)
    while block > 64 and cover(size, block) * block > 1.125 * size:
        block //= 2
    return block


def _split(norms: int, tiles: int, device: torch.device) -> tuple[int, int]:
    """Return the norms that each program forms, and how many programs share a tile: enough to fill the device."""
    wanted = cover(PROGRAMS_PER_PROCESSOR * processors(device), tiles)
    each = cover(norms, min(wanted, norms))
    return each, cover(norms, each)
