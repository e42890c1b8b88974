"""The loops of a quadratic training step that are no matrix products, each one pass over memory, compiled by numba.

Between two matrix products torch would run some twenty operations, each reading and writing a whole [B, X] tensor.
A kernel here does all of them for one row while it is in the cache. Its loops are short and name few arrays each:
those the compiler can prove apart, and vectorise. Half precision comes as its bits,
uint16 (`ctr.kernels.runtime`).

Dropout is drawn where it is used: the number that decides about a value is a hash of a seed and its place (SplitMix64,
Steele, Lea and Flood 2014), so the way back draws the same ones again and no mask is ever stored.

Shapes: B rows, X width, R linear rows. Each kernel does the rows `start` to `stop`, and adds to sums of its own.
"""

from __future__ import annotations

import numpy as np

from ctr.kernels.runtime import kernel, narrow, widen

LANES = 4  # numbers of 16 bits in a draw
BLOCK = 64  # rows whose sum may be in single precision

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
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
def drop(values, draws, levels):  # type: ignore[no-untyped-def]
    """Zero each value whose number of 16 bits, of the four in a draw, is below `levels`."""
    numbers = draws.view(np.uint16)
    zero, least = values.dtype.type(0), np.uint16(levels)
    for j in range(len(values)):
        values[j] = zero if numbers[j] < least else values[j]


@kernel
def centre(z, cross, mean):  # type: ignore[no-untyped-def]
    """`cross ← z ⊙ cross - mean`, of one row."""
    for j in range(len(z)):
        cross[j] = z[j] * cross[j] - mean[j]


@kernel
def normalise(z, cross, mean, gamma, beta):  # type: ignore[no-untyped-def]
    """`cross ← gamma (z ⊙ cross - mean) + beta`, of one row."""
    centre(z, cross, mean)
    for j in range(len(z)):
        cross[j] = cross[j] * gamma[j] + beta[j]


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
    draws = np.empty(words, np.uint64)
    one, total = np.empty(width, z.dtype), np.empty(width, z.dtype)
    for b in range(start, stop):
        for r in range(rows):
            first = r * width
            widen(linear[b, first : first + width], one)
            for j in range(width):
                one[j] += bias[first + j]
            if levels > 0:
                draw(seed, (b * rows + r) * words, draws)
                drop(one, draws, levels)
            if r == 0:
                widen(one, total)
            else:
                for j in range(width):
                    total[j] += one[j]
        narrow(total, s[b])
        widen(s[b], total)
        for j in range(width):
            total[j] *= z[b, j]
        for j in range(width):
            h = np.float64(total[j])
            sums[j] += h
            squares[j] += h * h


@kernel
def add_cross(z, s, mean, gamma, beta, slope, seed, levels, out, start, stop):  # type: ignore[no-untyped-def]
    """`out = z + Drop(PReLU(gamma (z ⊙ s - mean) + beta))`."""
    width = z.shape[1]
    words = -(-width // LANES)
    draws = np.empty(words, np.uint64)
    cross = np.empty(width, z.dtype)
    zero = z.dtype.type(0)
    for b in range(start, stop):
        widen(s[b], cross)
        normalise(z[b], cross, mean, gamma, beta)
        for j in range(width):
            cross[j] = cross[j] if cross[j] > zero else slope * cross[j]
        if levels > 0:
            draw(seed, b * words, draws)
            drop(cross, draws, levels)
        for j in range(width):
            out[b, j] = z[b, j] + cross[j]


@kernel
def before_prelu(  # type: ignore[no-untyped-def]
    z, s, gradient, mean, gamma, beta, seed, levels, place, draws, cross, normal, dropped
):
    """Of one row, computed again: `cross = z ⊙ s - mean`, `normal`, which PReLU takes, `dropped`, whose way goes back.

    `dropped` is the gradient of PReLU's output, from that of `add_cross`; `place` is the row's first draw of `seed`.
    """
    widen(s, cross)
    widen(gradient, dropped)
    if levels > 0:
        draw(seed, place, draws)
        drop(dropped, draws, levels)
    centre(z, cross, mean)
    for j in range(len(z)):
        normal[j] = cross[j] * gamma[j] + beta[j]


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
    draws = np.empty(words, np.uint64)
    cross, normal, dropped = np.empty(width, z.dtype), np.empty(width, z.dtype), np.empty(width, z.dtype)
    some_slope, some_beta, some_gamma = np.zeros(width, z.dtype), np.zeros(width, z.dtype), np.zeros(width, z.dtype)
    zero = z.dtype.type(0)
    for b in range(start, stop):
        before_prelu(z[b], s[b], gradient[b], mean, gamma, beta, seed, levels, b * words, draws, cross, normal, dropped)
        for j in range(width):
            below = normal[j] if normal[j] < zero else zero
            some_slope[j] += below * dropped[j]
        for j in range(width):
            dropped[j] = dropped[j] if normal[j] > zero else slope * dropped[j]
        for j in range(width):
            some_beta[j] += dropped[j]
        for j in range(width):
            some_gamma[j] += dropped[j] * cross[j]
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
    draws = np.empty(words, np.uint64)
    cross, normal, one = np.empty(width, z.dtype), np.empty(width, z.dtype), np.empty(width, z.dtype)
    of_sum = np.empty(width, z.dtype)
    some_bias = np.zeros(rows * width, z.dtype)
    zero = z.dtype.type(0)
    for b in range(start, stop):
        before_prelu(z[b], s[b], gradient[b], mean, gamma, beta, seed, levels, b * words, draws, cross, normal, one)
        for j in range(width):
            one[j] = one[j] if normal[j] > zero else slope * one[j]
        for j in range(width):
            one[j] = gamma[j] * one[j] - slant[j] * cross[j]
        for j in range(width):
            one[j] -= shift[j]
        widen(s[b], cross)
        for j in range(width):
            of_z[b, j] = gradient[b, j] + one[j] * cross[j]
        for j in range(width):
            of_sum[j] = one[j] * z[b, j]
        for r in range(rows):
            first = r * width
            widen(of_sum, one)
            if row_levels > 0:
                draw(row_seed, (b * rows + r) * words, draws)
                drop(one, draws, row_levels)
            narrow(one, of_linear[b, first : first + width])
            for j in range(width):
                some_bias[first + j] += one[j]
        if (b - start) % BLOCK == BLOCK - 1 or b == stop - 1:
            flush(some_bias, of_bias)


@kernel
def add(values, sums, start, stop):  # type: ignore[no-untyped-def]
    """`sums += values`, whose precision may be half."""
    one = np.empty(sums.shape[1], sums.dtype)
    for b in range(start, stop):
        widen(values[b], one)
        for j in range(sums.shape[1]):
            sums[b, j] += one[j]
