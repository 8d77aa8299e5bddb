"""The kernels of normalisations' backward passes; `normalisation` says what they make up, and launches them.

The loops are `while` loops: the interpreter of some versions of triton makes no `range` of a kernel's argument.
"""

from __future__ import annotations


def sums(
    gy, x, mean, rstd, parts, rows, splits, steps, channels, positions, each, members,
    gy_b, gy_c, gy_t, x_b, x_c, x_t,
    CHANNELS_LAST: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """Sums over a run of an example's positions of gy * (x - mean) * rstd, and of gy, for a block of channels.

    parts is [2, rows = examples * splits, channels]. A channel's statistic is number example * each + channel //
    members.
    """
    blocks = tl.cdiv(channels, BLOCK_C)
    row = tl.program_id(0) // blocks
    example = row // splits
    c = tl.program_id(0) % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    statistic = example.to(tl.int64) * each + c // members
    centre = tl.load(mean + statistic, c < channels, 0.0).to(tl.float32)
    factor = tl.load(rstd + statistic, c < channels, 0.0).to(tl.float32)

    # The dimension that is contiguous in memory is the tile's last: neighbouring threads, neighbouring numbers.
    c_in = c[None, :] if CHANNELS_LAST else c[:, None]
    centre = centre[None, :] if CHANNELS_LAST else centre[:, None]
    gy += example.to(tl.int64) * gy_b + c_in.to(tl.int64) * gy_c
    x += example.to(tl.int64) * x_b + c_in.to(tl.int64) * x_c
    scale = tl.zeros((BLOCK_T, BLOCK_C) if CHANNELS_LAST else (BLOCK_C, BLOCK_T), tl.float32)
    shift = tl.zeros((BLOCK_T, BLOCK_C) if CHANNELS_LAST else (BLOCK_C, BLOCK_T), tl.float32)
    start = row % splits * steps * BLOCK_T
    end = tl.minimum(start + steps * BLOCK_T, positions)
    while start < end:
        t = start + tl.arange(0, BLOCK_T)
        t_in = t[:, None] if CHANNELS_LAST else t[None, :]
        inside = (t_in < positions) & (c_in < channels)
        gy_tile = tl.load(gy + t_in.to(tl.int64) * gy_t, inside, 0.0).to(tl.float32)
        x_tile = tl.load(x + t_in.to(tl.int64) * x_t, inside, 0.0).to(tl.float32)
        scale += gy_tile * (x_tile - centre)  # centred first, which keeps the digits where |mean| >> std
        shift += gy_tile
        start += BLOCK_T

    place = parts + row.to(tl.int64) * channels + c
    tl.store(place, tl.sum(scale, 0 if CHANNELS_LAST else 1) * factor, c < channels)
    tl.store(place + rows.to(tl.int64) * channels, tl.sum(shift, 0 if CHANNELS_LAST else 1), c < channels)


def combine(
    parts, weight, scale, shift, scale_squares, shift_squares, means, rows, splits, channels, norms, first, last, group,
    statistics, groups, members, count,
    MEANS: tl.constexpr, NORM_ROWS: tl.constexpr, NORM_C: tl.constexpr, SUM_ROWS: tl.constexpr, SUM_C: tl.constexpr,
    MEAN_G: tl.constexpr, MEAN_C: tl.constexpr,
):  # fmt: skip
    """What follows from the parts [2, rows, channels] of `sums`: one of three things a program.

    The first `norms` programs form the squared norms of an example's, or of a group of examples', sums. The next ones
    sum blocks of channels over the batch. MEANS tells of what the statistics are, over which weight * gy and
    weight * gy * xhat are to be averaged, each over `count` numbers, into means [2, statistics]: of a "channel", by the
    programs of the sums; or of a "group" of channels of an example, by one more kind of program; or of "none".
    """
    program = tl.program_id(0)
    second = parts + rows.to(tl.int64) * channels
    if program < norms:
        begin = (first + program * group) * splits
        end = tl.minimum(first + (program + 1) * group, last) * splits
        scale_square = tl.zeros((NORM_C,), tl.float32)
        shift_square = tl.zeros((NORM_C,), tl.float32)
        column = program * 0
        while column < channels:
            c_norm = (column + tl.arange(0, NORM_C))[None, :]
            own_scale = tl.zeros((NORM_ROWS, NORM_C), tl.float32)
            own_shift = tl.zeros((NORM_ROWS, NORM_C), tl.float32)
            row = begin
            while row < end:
                r_norm = (row + tl.arange(0, NORM_ROWS))[:, None]
                known = (r_norm < end) & (c_norm < channels)
                own_scale += tl.load(parts + r_norm.to(tl.int64) * channels + c_norm, known, 0.0)
                own_shift += tl.load(second + r_norm.to(tl.int64) * channels + c_norm, known, 0.0)
                row += NORM_ROWS
            scale_sum, shift_sum = tl.sum(own_scale, 0), tl.sum(own_shift, 0)
            scale_square += scale_sum * scale_sum
            shift_square += shift_sum * shift_sum
            column += NORM_C
        tl.store(scale_squares + program, tl.sum(scale_square, 0))
        tl.store(shift_squares + program, tl.sum(shift_square, 0))
        return

    program -= norms
    if program < tl.cdiv(channels, SUM_C):
        c_sum = program * SUM_C + tl.arange(0, SUM_C)
        all_scale = tl.zeros((SUM_ROWS, SUM_C), tl.float32)
        all_shift = tl.zeros((SUM_ROWS, SUM_C), tl.float32)
        row = program * 0
        while row < rows:
            r_sum = (row + tl.arange(0, SUM_ROWS))[:, None]
            inside = (r_sum < rows) & (c_sum[None, :] < channels)
            all_scale += tl.load(parts + r_sum.to(tl.int64) * channels + c_sum[None, :], inside, 0.0)
            all_shift += tl.load(second + r_sum.to(tl.int64) * channels + c_sum[None, :], inside, 0.0)
            row += SUM_ROWS
        scale_total, shift_total = tl.sum(all_scale, 0), tl.sum(all_shift, 0)
        tl.store(scale + c_sum, scale_total, c_sum < channels)
        tl.store(shift + c_sum, shift_total, c_sum < channels)
        if MEANS == "channel":
            share = tl.load(weight + c_sum, c_sum < channels, 0.0).to(tl.float32) / count
            tl.store(means + c_sum, share * shift_total, c_sum < channels)
            tl.store(means + statistics + c_sum, share * scale_total, c_sum < channels)
        return

    if MEANS == "group":
        program -= tl.cdiv(channels, SUM_C)
        example = program // tl.cdiv(groups, MEAN_G)
        g = program % tl.cdiv(groups, MEAN_G) * MEAN_G + tl.arange(0, MEAN_G)
        scale_mean = tl.zeros((MEAN_G, MEAN_C), tl.float32)
        shift_mean = tl.zeros((MEAN_G, MEAN_C), tl.float32)
        member = program * 0
        while member < members:
            m = (member + tl.arange(0, MEAN_C))[None, :]
            c = g[:, None] * members + m
            present = (g[:, None] < groups) & (m < members)
            factor = tl.load(weight + c, present, 0.0).to(tl.float32)
            row = example * splits
            while row < (example + 1) * splits:
                scale_mean += factor * tl.load(parts + row.to(tl.int64) * channels + c, present, 0.0)
                shift_mean += factor * tl.load(second + row.to(tl.int64) * channels + c, present, 0.0)
                row += 1
            member += MEAN_C
        result = means + example.to(tl.int64) * groups + g
        tl.store(result, tl.sum(shift_mean, 1) / count, g < groups)
        tl.store(result + statistics, tl.sum(scale_mean, 1) / count, g < groups)


def input_gradient(
    gy, x, gx, weight, mean, rstd, means, splits, steps, channels, positions, statistics, each, members,
    gy_b, gy_c, gy_t, x_b, x_c, x_t, gx_b, gx_c, gx_t,
    CENTRED: tl.constexpr, CHANNELS_LAST: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_T: tl.constexpr,
):  # fmt: skip
    """Gradient of x for the positions and channels of a program of `sums`.

    It is rstd * (weight * gy - means[0] - xhat * means[1]), or, where the statistics do not depend on x and it is not
    CENTRED, rstd * weight * gy. The programs go backwards, so that the first find in the cache what `sums` read last.
    """
    blocks = tl.cdiv(channels, BLOCK_C)
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    row = program // blocks
    example = row // splits
    c = program % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    statistic = example.to(tl.int64) * each + c // members
    factor = tl.load(rstd + statistic, c < channels, 0.0).to(tl.float32)
    of_gy = tl.load(weight + c, c < channels, 0.0).to(tl.float32) * factor
    of_gy = of_gy[None, :] if CHANNELS_LAST else of_gy[:, None]
    if CENTRED:
        centre = tl.load(mean + statistic, c < channels, 0.0).to(tl.float32)
        constant = tl.load(means + statistic, c < channels, 0.0) * factor
        of_x = tl.load(means + statistics + statistic, c < channels, 0.0) * factor * factor
        centre = centre[None, :] if CHANNELS_LAST else centre[:, None]
        constant = constant[None, :] if CHANNELS_LAST else constant[:, None]
        of_x = of_x[None, :] if CHANNELS_LAST else of_x[:, None]

    c_in = c[None, :] if CHANNELS_LAST else c[:, None]
    gy += example.to(tl.int64) * gy_b + c_in.to(tl.int64) * gy_c
    x += example.to(tl.int64) * x_b + c_in.to(tl.int64) * x_c
    gx += example.to(tl.int64) * gx_b + c_in.to(tl.int64) * gx_c
    start = row % splits * steps * BLOCK_T
    end = tl.minimum(start + steps * BLOCK_T, positions)
    while start < end:
        t = start + tl.arange(0, BLOCK_T)
        t_in = t[:, None] if CHANNELS_LAST else t[None, :]
        inside = (t_in < positions) & (c_in < channels)
        result = of_gy * tl.load(gy + t_in.to(tl.int64) * gy_t, inside, 0.0).to(tl.float32)
        if CENTRED:
            x_tile = tl.load(x + t_in.to(tl.int64) * x_t, inside, 0.0).to(tl.float32)
            result = result - constant - (x_tile - centre) * of_x
        tl.store(gx + t_in.to(tl.int64) * gx_t, result.to(gx.dtype.element_ty), inside)
        start += BLOCK_T


def layer_norm_rows(
    gy, x, gx, weight, mean, rstd, means, parts, rows, splits, steps, features, positions, statistics,
    gy_b, gy_t, x_b, x_t, gx_b, gx_t,
    INPUT: tl.constexpr, WHOLE: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Both passes of layer normalisation over a run of an example's positions, for a block of features.

    Writes the sums of gy * xhat and of gy to parts [2, rows = examples * splits, features], and, where INPUT, the
    gradient of x, rstd * (weight * gy - mean(weight * gy) - xhat * mean(weight * gy * xhat)). Where the block is not
    the WHOLE of a row, the two means come from `row_means`.
    """
    blocks = tl.cdiv(features, BLOCK_D)
    row = tl.program_id(0) // blocks
    example = row // splits
    d = tl.program_id(0) % blocks * BLOCK_D + tl.arange(0, BLOCK_D)
    d_in = d[None, :]
    factor = tl.load(weight + d_in, d_in < features, 0.0).to(tl.float32)
    gy += example.to(tl.int64) * gy_b + d_in
    x += example.to(tl.int64) * x_b + d_in
    gx += example.to(tl.int64) * gx_b + d_in
    first = example.to(tl.int64) * positions
    scale = tl.zeros((ROWS, BLOCK_D), tl.float32)
    shift = tl.zeros((ROWS, BLOCK_D), tl.float32)
    start = row % splits * steps * ROWS
    end = tl.minimum(start + steps * ROWS, positions)
    while start < end:
        t = (start + tl.arange(0, ROWS))[:, None]
        inside = (t < positions) & (d_in < features)
        gy_tile = tl.load(gy + t.to(tl.int64) * gy_t, inside, 0.0).to(tl.float32)
        x_tile = tl.load(x + t.to(tl.int64) * x_t, inside, 0.0).to(tl.float32)
        centre = tl.load(mean + first + t, t < positions, 0.0).to(tl.float32)
        spread = tl.load(rstd + first + t, t < positions, 0.0).to(tl.float32)
        normal = (x_tile - centre) * spread
        scale += gy_tile * normal
        shift += gy_tile
        if INPUT:
            weighted = gy_tile * factor
            if WHOLE:
                plain = tl.sum(weighted, 1, keep_dims=True) / features
                centred = tl.sum(weighted * normal, 1, keep_dims=True) / features
            else:
                plain = tl.load(means + first + t, t < positions, 0.0)
                centred = tl.load(means + statistics + first + t, t < positions, 0.0)
            result = spread * (weighted - plain - normal * centred)
            tl.store(gx + t.to(tl.int64) * gx_t, result.to(gx.dtype.element_ty), inside)
        start += ROWS

    place = parts + row.to(tl.int64) * features + d
    tl.store(place, tl.sum(scale, 0), d < features)
    tl.store(place + rows.to(tl.int64) * features, tl.sum(shift, 0), d < features)


def row_means(
    gy, x, weight, mean, rstd, means, features, positions, statistics, gy_b, gy_t, x_b, x_t, BLOCK_D: tl.constexpr
):  # fmt: skip
    """The means of weight * gy, and of weight * gy * xhat, of one row of layer normalisation, into means [2, rows]."""
    row = tl.program_id(0)
    example, t = (row // positions).to(tl.int64), (row % positions).to(tl.int64)
    gy += example * gy_b + t * gy_t
    x += example * x_b + t * x_t
    centre = tl.load(mean + row).to(tl.float32)
    plain = tl.zeros((BLOCK_D,), tl.float32)
    centred = tl.zeros((BLOCK_D,), tl.float32)
    column = row * 0
    while column < features:
        d = column + tl.arange(0, BLOCK_D)
        factor = tl.load(weight + d, d < features, 0.0).to(tl.float32)
        weighted = tl.load(gy + d, d < features, 0.0).to(tl.float32) * factor
        plain += weighted
        centred += weighted * (tl.load(x + d, d < features, 0.0).to(tl.float32) - centre)
        column += BLOCK_D
    tl.store(means + row, tl.sum(plain, 0) / features)
    tl.store(means + statistics + row, tl.sum(centred, 0) * tl.load(rstd + row).to(tl.float32) / features)
