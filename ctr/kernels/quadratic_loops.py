"""The loops of a quadratic training step that are no matrix products, each one pass over memory, compiled by numba.

Between two matrix products torch would run some twenty operations, each reading and writing a whole [B, X] tensor.
A kernel here does all of them for one row while it is in the cache. Its loops are short and name few arrays each:
those the compiler can prove apart, and vectorise. Half precision comes as its bits (`ctr.kernels.runtime`).

Dropout is drawn where it is used: the number that decides about a value is a hash of a seed and its place (SplitMix64,
Steele, Lea and Flood 2014), so the way back draws the same ones again and no mask is ever stored.

Shapes: B rows, X width, R linear rows. Each kernel does the rows `start` to `stop`, and adds to sums of its own.
"""

from __future__ import annotations

import numpy as np

from ctr.kernels.runtime import kernel, put, widen

LANES = 4  # numbers of 16 bits in a draw
BLOCK = 64  # rows whose sum may be in single precision

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_ZERO = np.float32(0)
_S27, _S30, _S31 = np.uint64(27), np.uint64(30), np.uint64(31)


@kernel
def draw(seed, place, draws):  # type: ignore[no-untyped-def]
    """Fill `draws` (uint64) with the draws `place`, `place + 1`, … of a seed."""
    for w in range(len(draws)):
        one = seed + (np.uint64(place + w) + np.uint64(1)) * _GOLDEN
        one = (one ^ (one >> _S30)) * _MIX_1
        one = (one ^ (one >> _S27)) * _MIX_2
        draws[w] = one ^ (one >> _S31)


@kernel
def keep(value, number, least):  # type: ignore[no-untyped-def]
    """The value, or 0 if its number of 16 bits, of the four in a draw, is below `least`."""
    return _ZERO if number < least else value


@kernel
def flush(some, total):  # type: ignore[no-untyped-def]
    """Add to sums in double precision what a few rows added up to, and begin anew."""
    for j in range(len(some)):
        total[j] += some[j]
        some[j] = 0


@kernel
def sum_rows(z, linear, bias, s, seed, levels, sums, squares, start, stop):  # type: ignore[no-untyped-def]
    """`s = Σ_r Drop(linear_r + b_r)`, and the sums over rows of `h = z ⊙ s` and of its squares."""
    width = z.shape[1]
    words = -(-width // LANES)
    rows = linear.shape[1] // width
    draws, least = np.zeros(words, np.uint64), np.uint16(levels)
    numbers = draws.view(np.uint16)
    total = np.empty(width, z.dtype)
    some, some_squares = np.zeros(width, z.dtype), np.zeros(width, z.dtype)
    for b in range(start, stop):
        z_X, s_X = z[b], s[b]
        for r in range(rows):
            linear_X, bias_X = linear[b, r * width : (r + 1) * width], bias[r * width : (r + 1) * width]
            if levels > 0:
                draw(seed, (b * rows + r) * words, draws)
            if r == 0:
                for j in range(width):
                    total[j] = keep(widen(linear_X[j]) + bias_X[j], numbers[j], least)
            else:
                for j in range(width):
                    total[j] += keep(widen(linear_X[j]) + bias_X[j], numbers[j], least)
        for j in range(width):
            put(s_X, j, total[j])
        for j in range(width):
            h = z_X[j] * widen(s_X[j])
            some[j] += h
            some_squares[j] += h * h
        if (b - start) % BLOCK == BLOCK - 1 or b == stop - 1:
            flush(some, sums)
            flush(some_squares, squares)


@kernel
def add_cross(z, s, mean, gamma, beta, slope, seed, levels, out, start, stop):  # type: ignore[no-untyped-def]
    """`out = z + Drop(PReLU(gamma (z ⊙ s - mean) + beta))`."""
    width = z.shape[1]
    words = -(-width // LANES)
    draws, least = np.zeros(words, np.uint64), np.uint16(levels)
    numbers = draws.view(np.uint16)
    cross = np.empty(width, z.dtype)
    for b in range(start, stop):
        z_X, s_X, out_X = z[b], s[b], out[b]
        if levels > 0:
            draw(seed, b * words, draws)
        for j in range(width):
            normal = (z_X[j] * widen(s_X[j]) - mean[j]) * gamma[j] + beta[j]
            cross[j] = normal if normal > _ZERO else slope * normal
        for j in range(width):
            out_X[j] = z_X[j] + keep(cross[j], numbers[j], least)


@kernel
def before_prelu(z, s, gradient, mean, numbers, least, cross, dropped):  # type: ignore[no-untyped-def]
    """Of one row, computed again: `cross = z ⊙ s - mean`, and `dropped`, the gradient of PReLU's output."""
    for j in range(len(z)):
        cross[j] = z[j] * widen(s[j]) - mean[j]
    for j in range(len(z)):
        dropped[j] = keep(widen(gradient[j]), numbers[j], least)


@kernel
def norm_sums(  # type: ignore[no-untyped-def]
    z, s, gradient, mean, gamma, beta, slope, seed, levels, of_slope, of_beta, of_gamma, start, stop
):
    """Sums over rows that the way back needs: of the gradient dn of batch norm's output, and of the slope.

    `of_beta` gets the sums of dn, `of_gamma` those of `dn ⊙ (h - mean)`, `of_slope` [X] what adds up to the gradient of
    the slope. dn itself is not kept: to compute it again takes less time than to write and to read it.
    """
    width = z.shape[1]
    words = -(-width // LANES)
    draws, least = np.zeros(words, np.uint64), np.uint16(levels)
    numbers = draws.view(np.uint16)
    cross, of_norm = np.empty(width, z.dtype), np.empty(width, z.dtype)
    some_slope, some_beta, some_gamma = np.zeros(width, z.dtype), np.zeros(width, z.dtype), np.zeros(width, z.dtype)
    for b in range(start, stop):
        if levels > 0:
            draw(seed, b * words, draws)
        before_prelu(z[b], s[b], gradient[b], mean, numbers, least, cross, of_norm)
        for j in range(width):
            normal, dropped = cross[j] * gamma[j] + beta[j], of_norm[j]
            some_slope[j] += dropped * (normal if normal < _ZERO else _ZERO)
            of_norm[j] = dropped if normal > _ZERO else slope * dropped
        for j in range(width):
            some_beta[j] += of_norm[j]
            some_gamma[j] += of_norm[j] * cross[j]
        if (b - start) % BLOCK == BLOCK - 1 or b == stop - 1:
            flush(some_slope, of_slope)
            flush(some_beta, of_beta)
            flush(some_gamma, of_gamma)


@kernel
def to_rows(  # type: ignore[no-untyped-def]
    z,
    s,
    gradient,
    mean,
    gamma,
    beta,
    slope,
    seed,
    levels,
    shift,
    slant,
    row_seed,
    row_levels,
    of_linear,
    of_bias,
    of_z,
    start,
    stop,
):
    """From the gradient of `add_cross` to that of each linear row, and of z but for its linear rows.

    `dh = gamma dn - shift - slant (h - mean)`.
    """
    width = z.shape[1]
    words = -(-width // LANES)
    rows = of_linear.shape[1] // width
    draws, least = np.zeros(words, np.uint64), np.uint16(levels)
    numbers = draws.view(np.uint16)
    row_draws, row_least = np.zeros(words, np.uint64), np.uint16(row_levels)
    row_numbers = row_draws.view(np.uint16)
    cross, one = np.empty(width, z.dtype), np.empty(width, z.dtype)
    some_bias = np.zeros(rows * width, z.dtype)
    for b in range(start, stop):
        z_X, s_X, gradient_X, of_z_X = z[b], s[b], gradient[b], of_z[b]
        if levels > 0:
            draw(seed, b * words, draws)
        before_prelu(z_X, s_X, gradient_X, mean, numbers, least, cross, one)
        for j in range(width):
            of_norm = one[j] if cross[j] * gamma[j] + beta[j] > _ZERO else slope * one[j]
            one[j] = gamma[j] * of_norm - slant[j] * cross[j] - shift[j]
        for j in range(width):
            of_z_X[j] = widen(gradient_X[j]) + one[j] * widen(s_X[j])
        for j in range(width):
            one[j] *= z_X[j]
        for r in range(rows):
            linear_X, bias_X = of_linear[b, r * width : (r + 1) * width], some_bias[r * width : (r + 1) * width]
            if row_levels > 0:
                draw(row_seed, (b * rows + r) * words, row_draws)
            for j in range(width):
                kept = keep(one[j], row_numbers[j], row_least)
                bias_X[j] += kept
                put(linear_X, j, kept)
        if (b - start) % BLOCK == BLOCK - 1 or b == stop - 1:
            flush(some_bias, of_bias)


@kernel
def add(values, sums, start, stop):  # type: ignore[no-untyped-def]
    """`sums += values`, whose precision may be half."""
    for b in range(start, stop):
        values_X, sums_X = values[b], sums[b]
        for j in range(len(sums_X)):
            sums_X[j] += widen(values_X[j])
