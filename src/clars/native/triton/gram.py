"""Squared norms of examples' or groups' weight gradients without forming them, in one kernel, for accelerators.

||G X^T||^2 is the sum over pairs of positions (s, t) of (G^T G)[s, t] * (X^T X)[s, t], for G [P, T] and X [D, T]. A
program holds one tile of either product in registers and leaves one number: it reads gy and x, and writes no matrix.
"""

from __future__ import annotations  # the kernel's name `tl`, which is bound at its first use

from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from clars.native.triton.compiling import compiled, cover, interpreted, power_of_two
from clars.native.triton.launching import Launch, plans
from clars.native.triton.layout import Form, Layout, copied, form

# The arguments that shall not make a kernel of their own where they are 1 or a multiple of 16.
_UNSPECIALIZED = (
    *("examples", "group", "positions", "blocks", "out_width", "height", "width", "kernel_w"),
    *("stride_h", "stride_w", "padding_h", "padding_w", "dilation_h", "dilation_w"),
)


def gram_squares(
    gy: Tensor,
    x: Tensor,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    group: int = 1,
) -> Tensor:
    """Return the squared norms of the weight gradients of a convolution in one group, each summed over some examples.

    It costs group^2 * T^2 * (P + C * taps) operations a group, for T positions: little where they are few.

    Args:
        gy: output gradients [B, P, Ho, Wo], of float16, bfloat16 or float32.
        x: inputs [B, C, H, W], of gy's type. Either is copied if its channels are not next to each other in memory.
        kernel, stride, padding, dilation: the convolution's, for (height, width).
        group: how many consecutive examples make a group; the last may be smaller.

    Returns:
        squared norms [number of groups], float32 and accumulated in float32, none below zero. Products of float32 are
        formed in TF32 where torch's own products of matrices are. The same inputs on the same device give the
        same bits.

    The first call for a new combination of types, tiles and alignments compiles, so make one before a CUDA graph is
    captured.
    """
    geometry = tuple(kernel), tuple(stride), tuple(padding), tuple(dilation)
    plan = _plan(form(gy), form(x), *geometry, group, _precision(x))
    partial = gy.new_empty(plan.partial, dtype=torch.float32)
    plan.launch(copied(gy, plan.gy_layout), copied(x, plan.x_layout), partial)
    return partial.sum(1).clamp_min_(0) if partial.dim() > 1 else partial


class _Plan(NamedTuple):
    """A launch for operands of a form, the layouts that they are copied to first, and the shape of what it writes."""

    launch: Launch
    gy_layout: Layout | None
    x_layout: Layout | None
    partial: tuple[int, ...]  # [norms, pairs of blocks], to be summed over the pairs, or [norms]


@plans
def _plan(
    gy: Form,
    x: Form,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    group: int,
    precision: str,
) -> _Plan:
    layouts = gy.together, x.together
    gy, x = (operand.copied(layout) for operand, layout in zip((gy, x), layouts))
    examples, positions = x.shape[0], prod(gy.shape[2:])
    block, block_c, warps = _blocks(gy, x, group * positions, precision)
    blocks, norms = cover(group * positions, block), cover(examples, group)
    pairs = blocks * (blocks + 1) // 2
    values = (
        examples, group, positions, blocks, gy.shape[1], x.shape[1], gy.shape[3], *x.shape[2:], kernel[1], *stride,
        *padding, *dilation, *gy.strides, *x.strides, prod(kernel), any(padding), pairs == 1, precision, interpreted(),
        block, block_c,
    )  # fmt: skip
    made = compiled(_gram_squares, _UNSPECIALIZED, ("_inner_products", "_tile"))
    options = {"num_warps": warps, "num_stages": 3, "enable_fp_fusion": True}
    launch = Launch(made, (norms * pairs,), values, gy.device, **options)
    return _Plan(launch, *layouts, (norms, pairs) if pairs > 1 else (norms,))


def _gram_squares(
    gy, x, partial, examples, group, positions, blocks, outputs, channels, out_width, height, width, kernel_w,
    stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w,
    gy_b, gy_c, gy_h, gy_w, x_b, x_c, x_h, x_w,
    TAPS: tl.constexpr, PADDED: tl.constexpr,
    ALONE: tl.constexpr, PRECISION: tl.constexpr, INTERPRETED: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One pair of blocks of a group's positions: its share of the squared norm.

    Both products are symmetric, so that blocks s <= t are enough, and those off the diagonal count twice.

    PADDED: whether windows reach beyond x. ALONE: whether one pair of blocks is all.
    """
    pairs = blocks * (blocks + 1) // 2
    norm, pair = tl.program_id(0) // pairs, tl.program_id(0) % pairs
    # Row s of the triangle has blocks - s pairs; a row and the one as far from the end have blocks + 1 together.
    row, place = pair // (blocks + 1), pair % (blocks + 1)
    beyond = place >= blocks - row
    s_block = tl.where(beyond, blocks - 1 - row, row)
    t_block = tl.where(beyond, place - 1, row + place)

    s, t = s_block * BLOCK + tl.arange(0, BLOCK), t_block * BLOCK + tl.arange(0, BLOCK)
    s_of, t_of = norm * group + s // positions, norm * group + t // positions
    s_in, t_in = (s < group * positions) & (s_of < examples), (t < group * positions) & (t_of < examples)
    s_row, s_column = s % positions // out_width, s % positions % out_width
    t_row, t_column = t % positions // out_width, t % positions % out_width
    of_gy = _inner_products(
        gy + s_of.to(tl.int64) * gy_b + s_row * gy_h + s_column * gy_w, s_in, s_row, s_column,
        gy + t_of.to(tl.int64) * gy_b + t_row * gy_h + t_column * gy_w, t_in, t_row, t_column,
        outputs, gy_c, 0, 0, 0, 0, 1, 1, 1,
        1, False, ALONE, PRECISION, INTERPRETED, BLOCK, BLOCK_C,
    )  # fmt: skip
    s_row, s_column = s_row * stride_h - padding_h, s_column * stride_w - padding_w
    t_row, t_column = t_row * stride_h - padding_h, t_column * stride_w - padding_w
    of_x = _inner_products(
        x + s_of.to(tl.int64) * x_b + s_row * x_h + s_column * x_w, s_in, s_row, s_column,
        x + t_of.to(tl.int64) * x_b + t_row * x_h + t_column * x_w, t_in, t_row, t_column,
        channels, x_c, x_h, x_w, height, width, kernel_w, dilation_h, dilation_w,
        TAPS, PADDED, ALONE, PRECISION, INTERPRETED, BLOCK, BLOCK_C,
    )  # fmt: skip
    square = tl.sum(of_gy * of_x)
    if ALONE:
        square = tl.where(square < 0, 0.0, square)  # what is no number stays none
    elif s_block != t_block:
        square *= 2
    tl.store(partial + tl.program_id(0), square)


def _inner_products(
    s, s_in, s_row, s_column, t, t_in, t_row, t_column,
    channels, c_step, h_step, w_step, height, width, kernel_w, dilation_h, dilation_w,
    TAPS: tl.constexpr, PADDED: tl.constexpr, ALONE: tl.constexpr,
    PRECISION: tl.constexpr, INTERPRETED: tl.constexpr, BLOCK: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Inner products [BLOCK, BLOCK] of windows s and t, each given by where its first tap lies.

    They are sums over taps of inner products of single positions.
    """
    products = tl.zeros((BLOCK, BLOCK), tl.float32)
    steps = tl.cdiv(channels, BLOCK_C)
    for step in range(TAPS * steps):
        c = step % steps * BLOCK_C + tl.arange(0, BLOCK_C)
        down, across = step // steps // kernel_w * dilation_h, step // steps % kernel_w * dilation_w
        s_tile = _tile(
            s, s_in, s_row, s_column, c, down, across, channels, c_step, h_step, w_step, height, width,
            PADDED, INTERPRETED,
        )  # fmt: skip
        t_tile = s_tile
        if not ALONE:
            t_tile = _tile(
                t, t_in, t_row, t_column, c, down, across, channels, c_step, h_step, w_step, height, width,
                PADDED, INTERPRETED,
            )  # fmt: skip
        products = tl.dot(s_tile, tl.trans(t_tile), products, input_precision=PRECISION)
    return products


def _tile(
    place, inside, row, column, c, down, across, channels, c_step, h_step, w_step, height, width,
    PADDED: tl.constexpr, INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Some channels of the positions that lie `down` and `across` from others: [positions, channels], zero outside."""
    if PADDED:
        inside &= (row + down >= 0) & (row + down < height) & (column + across >= 0) & (column + across < width)
    place += down * h_step + across * w_step
    tile = tl.load(place[:, None] + (c * c_step)[None, :], inside[:, None] & (c < channels)[None, :], 0.0)
    if INTERPRETED:  # whose dot takes bfloat16 for integers; the products are exact in float32 all the same
        tile = tile.to(tl.float32)
    return tile


def _blocks(gy: Form, x: Form, positions: int, precision: str) -> tuple[int, int, int]:
    """Return how many positions and channels make a tile, powers of two of 16 at least, and the warps that share it.

    Wide tiles read less for each product. They need loads of many numbers at once, from aligned channels, and products
    in the tensor cores; else they take too many registers.
    """
    whole = all(operand.aligned(operand.shape[1]) for operand in (gy, x))
    if not whole or (precision == "ieee" and gy.dtype == torch.float32):
        block = power_of_two(positions, 64)
        return block, 1024 // block, 4 if whole or block < 64 else 8
    wide, half = cover(positions, 128), cover(positions, 64)
    padding_is_little = 4 * wide * (wide + 1) <= 1.5 * half * (half + 1)
    block = power_of_two(positions, 128 if gy.dtype != torch.float32 and padding_is_little else 64)
    return block, 32 if gy.dtype == torch.float32 else 64, 8 if block > 64 else 4


def _precision(x: Tensor) -> str:
    settings = torch.backends.cuda.matmul
    # `allow_tf32` raises in the versions of torch that know `fp32_precision`, once somebody has set that.
    named = hasattr(settings, "fp32_precision")
    tf32 = settings.fp32_precision == "tf32" if named else settings.allow_tf32
    return "tf32" if tf32 and x.dtype == torch.float32 else "ieee"
