"""The parts of the compiled loops that the layer's own tests cannot see one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numba import njit

from ctr.kernels import quadratic_loops as kernels
from ctr.kernels import runtime as compiled
from ctr.kernels.quadratic_autograd import dropped_levels, keep_scale


@njit
def widened(bits, numbers):
    for place in range(len(bits)):
        numbers[place] = compiled.widen(bits[place])


@njit
def rounded(numbers, bits):
    for place in range(len(bits)):
        compiled.put(bits, place, numbers[place])


@njit
def kept(values, draws, levels):
    numbers, least = draws.view(np.uint16), np.uint16(levels)
    for place in range(len(values)):
        values[place] = kernels.keep(values[place], numbers[place], least)


def dropped(rows: int, width: int, p: float, seed: int = 7) -> np.ndarray:
    """Ones after dropout, [rows, width]."""
    values, words = np.ones((rows, width), np.float32), -(-width // 4)
    draws = np.empty(words, np.uint64)
    for row in range(rows):
        kernels.draw(np.uint64(seed), row * words, draws)
        kept(values[row], draws, dropped_levels(p))
    return values


def test_half_precision_is_rounded_and_widened_as_torch_does():
    some = [0.0, -0.0, 1.0, -1.5, 3.14159, 1e-40, 65504.0, 3.4e38, float("inf"), float("-inf"), float("nan")]
    halves = [1.00390625, 1.01171875]  # halfway between two neighbours: to the even one
    numbers = np.concatenate([np.array(some + halves), np.random.default_rng(0).normal(size=1000)]).astype(np.float32)
    expected = torch.from_numpy(numbers).to(torch.bfloat16)
    bits = np.empty(len(numbers), np.uint16)
    rounded(numbers, bits)
    known = ~np.isnan(numbers)  # which bits stand for NaN is the machine's choice
    assert bits[known].tolist() == expected.view(torch.uint16).numpy()[known].tolist()
    back = np.empty_like(numbers)
    widened(bits, back)
    np.testing.assert_array_equal(back, expected.float().numpy())


def test_no_bits_of_nan_become_a_number():
    odd = np.array([0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF, 0xFF800001], np.uint32).view(np.float32)
    bits, back = np.empty(len(odd), np.uint16), np.empty_like(odd)
    rounded(odd, bits)
    widened(bits, back)
    assert np.isnan(back).all()


def test_sums_over_rows_are_of_what_is_kept_of_their_sum():
    """The way back has s as it was rounded: batch norm's mean and variance must be those of the same numbers."""
    draw = np.random.default_rng(0)
    z, linear = draw.normal(size=(5, 8)).astype(np.float32), draw.normal(size=(5, 16)).astype(np.float32)
    s, back = np.empty((5, 8), np.uint16), np.empty((5, 8), np.float32)
    sums, squares = np.zeros(8), np.zeros(8)
    kernels.sum_rows(z, linear, np.zeros(16, np.float32), s, np.uint64(1), 0, sums, squares, 0, 5)
    widened(s.ravel(), back.reshape(-1))
    assert np.abs(back - linear[:, :8] - linear[:, 8:]).max() > 1e-3, "numbers that rounding changes"
    np.testing.assert_allclose(sums, (z * back).sum(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(squares, np.square(z * back).sum(0), rtol=1e-5)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_values_are_dropped_as_often_as_asked_and_the_mean_stays(p: float):
    values = dropped(2_000, 503, p)
    share = (values == 0).mean()
    # A million values: five standard deviations of a share.
    assert abs(share - p) < 5 * (p * (1 - p) / values.size) ** 0.5
    assert keep_scale(p) * (1 - dropped_levels(p) / 65536) == pytest.approx(1, abs=1e-12)
    assert keep_scale(0) == 1 and dropped_levels(0) == 0 and dropped_levels(1e-9) == 1


def test_values_are_dropped_independently():
    values = dropped(3_000, 64, 0.3)
    correlation = np.corrcoef(values.T) - np.eye(64)
    # Neighbouring values come from one draw of 64 bits; 2,016 pairs, each within five standard deviations.
    assert np.abs(correlation).max() < 5 / 3_000**0.5
    below = np.corrcoef(values[:-1].ravel(), values[1:].ravel())[0, 1]
    other_seed = np.corrcoef(values.ravel(), dropped(3_000, 64, 0.3, seed=8).ravel())[0, 1]
    assert abs(below) < 5 / values.size**0.5 and abs(other_seed) < 5 / values.size**0.5
