"""Weight gradient of a convolution, and squared norms of examples' or groups' own, in one kernel, for accelerators.

The product method writes each example's gradient to memory, only to square and sum it. Here a program holds one tile
of the gradient in registers: it forms the tile of an example, or of a group of them, adds the tile's square to the norm
and the tile to the batch's total, and goes on to the next. The patches of x are gathered as they are read (no im2col).
"""

from __future__ import annotations  # the kernel's name `tl`, which is bound at its first use

import torch
from torch import Tensor

from clars.native.triton.compiling import compiled, cover, interpreted, processors

DTYPES = (torch.float16, torch.bfloat16, torch.float32)

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
    examples, outputs, channels = len(x), gy.shape[1] // groups, x.shape[1] // groups
    columns, positions = channels * kernel[0] * kernel[1], gy.shape[2] * gy.shape[3]
    block_p, block_d, block_t = _blocks(gy, x, outputs, channels, columns)
    tiles_p, tiles_d = cover(outputs, block_p), cover(columns, block_d)
    tiles = groups * tiles_p * tiles_d
    norms = cover(examples, group)
    norms_each, splits = _split(norms, tiles, gy.device)
    parts = gy.new_empty((splits, groups * outputs, columns), dtype=torch.float32)
    squares = gy.new_empty((tiles, norms), dtype=torch.float32)
    warps = 8 if block_p * block_d >= 64 * 64 else 4
    with torch.cuda.device_of(gy):  # triton launches on the current device, whatever the tensors'
        compiled(_products, _UNSPECIALIZED)[(tiles, splits)](
            gy, x, parts, squares, examples, norms_each * group, group, norms, outputs, channels, columns, tiles_p,
            tiles_d, gy.shape[1], gy.shape[3], positions, x.shape[2], x.shape[3], kernel[1], *stride, *padding,
            *dilation, *gy.stride(), *x.stride(), gy.stride(1) == 1, x.stride(1) == 1, interpreted(),
            block_p, block_d, block_t, num_warps=warps, num_stages=4, enable_fp_fusion=True,
        )  # fmt: skip
    gradient = parts.sum(0) if splits > 1 else parts[0]
    return gradient.view(-1, *kernel, channels).permute(0, 3, 1, 2), squares.sum(0)


def _products(
    gy, x, parts, squares, examples, examples_each, together, norms, outputs, channels, columns, tiles_p, tiles_d, rows,
    out_width, positions, height, width, kernel_w,
    stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w,
    gy_b, gy_c, gy_h, gy_w, x_b, x_c, x_h, x_w,
    GY_CHANNELS_LAST: tl.constexpr, X_CHANNELS_LAST: tl.constexpr, INTERPRETED: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """One tile [BLOCK_P, BLOCK_D] of one group's gradient [outputs, columns], over one run of the examples.

    A column d is (kernel row, kernel column, channel), channels fastest, and a position t is (row, column) of gy.
    Each tile is read with the dimension that is contiguous in memory last: neighbouring threads, neighbouring numbers.
    """
    tile, split = tl.program_id(0), tl.program_id(1)
    group = tile // (tiles_p * tiles_d)
    p = tile // tiles_d % tiles_p * BLOCK_P + tl.arange(0, BLOCK_P)
    d = tile % tiles_d * BLOCK_D + tl.arange(0, BLOCK_D)
    p_in = p[None, :] if GY_CHANNELS_LAST else p[:, None]
    d_in = d[None, :] if X_CHANNELS_LAST else d[:, None]

    # Where an output (column) lies relative to its position's place in gy (x), in 64 bits: a batch can be that large.
    tap_h = d_in // channels // kernel_w * dilation_h - padding_h
    tap_w = d_in // channels % kernel_w * dilation_w - padding_w
    gy += (group * outputs + p_in).to(tl.int64) * gy_c
    x += (group * channels + d_in % channels).to(tl.int64) * x_c + tap_h.to(tl.int64) * x_h + tap_w.to(tl.int64) * x_w

    first = split * examples_each
    steps = tl.cdiv(positions, BLOCK_T)
    own = tl.zeros((BLOCK_P, BLOCK_D), tl.float32)
    total = tl.zeros((BLOCK_P, BLOCK_D), tl.float32)
    # One loop over examples and positions, so that an example's first loads overlap its predecessor's last products. A
    # program's examples are whole groups, but for the batch's last.
    for step in range(tl.minimum(examples_each, examples - first) * steps):
        example = first + step // steps
        t = step % steps * BLOCK_T + tl.arange(0, BLOCK_T)
        t_gy = t[:, None] if GY_CHANNELS_LAST else t[None, :]
        t_x = t[:, None] if X_CHANNELS_LAST else t[None, :]
        row, column = t_x // out_width * stride_h, t_x % out_width * stride_w
        at_gy = (t_gy // out_width).to(tl.int64) * gy_h + (t_gy % out_width).to(tl.int64) * gy_w
        at_x = row.to(tl.int64) * x_h + column.to(tl.int64) * x_w
        inside = (row + tap_h >= 0) & (row + tap_h < height) & (column + tap_w >= 0) & (column + tap_w < width)
        gy_tile = tl.load(gy + example.to(tl.int64) * gy_b + at_gy, (t_gy < positions) & (p_in < outputs), 0.0)
        x_tile = tl.load(x + example.to(tl.int64) * x_b + at_x, inside & (t_x < positions) & (d_in < columns), 0.0)
        if GY_CHANNELS_LAST:
            gy_tile = tl.trans(gy_tile)
        if not X_CHANNELS_LAST:
            x_tile = tl.trans(x_tile)
        if INTERPRETED:  # whose dot takes bfloat16 for integers; the products are exact in float32 all the same
            gy_tile, x_tile = gy_tile.to(tl.float32), x_tile.to(tl.float32)
        own = tl.dot(gy_tile, x_tile, own, input_precision="ieee")  # "ieee": no tf32 where the inputs are float32
        if (step % steps == steps - 1) & (((example + 1) % together == 0) | (example == examples - 1)):
            tl.store(squares + tile.to(tl.int64) * norms + example // together, tl.sum(own * own))
            total += own
            own = tl.zeros((BLOCK_P, BLOCK_D), tl.float32)

    place = (split * rows + group * outputs + p[:, None]).to(tl.int64) * columns + d[None, :]
    tl.store(parts + place, total, (p[:, None] < outputs) & (d[None, :] < columns))


def _blocks(gy: Tensor, x: Tensor, outputs: int, channels: int, columns: int) -> tuple[int, int, int]:
    """Return the tile's outputs, columns and positions at a time: powers of two, 16 at least, as tl.dot wants.

    An example's tile, the total and the addresses of the next loads share the registers. Only loads of many numbers
    at once, from aligned channels, and products in the tensor cores leave room for a tile wider than 64.
    """
    aligned = all(tensor.stride(1) == 1 for tensor in (gy, x)) and outputs % 16 == channels % 16 == 0
    most = 128 if aligned and gy.dtype != torch.float32 else 64
    return _block(outputs, most), _block(columns, most), _block(gy.shape[2] * gy.shape[3], 32)


def _block(size: int, most: int) -> int:
    """Return the power of two of 16..`most` that covers `size`, or 64 where 128 would mostly cover padding."""
    block = min(most, max(16, 1 << (size - 1).bit_length()))
    return 64 if block > 64 and cover(size, block) * block > 1.125 * size else block


def _split(norms: int, tiles: int, device: torch.device) -> tuple[int, int]:
    """Return the norms that each program forms, and how many programs share a tile: enough to fill the device."""
    wanted = cover(PROGRAMS_PER_PROCESSOR * processors(device), tiles)
    each = cover(norms, min(wanted, norms))
    return each, cover(norms, each)
