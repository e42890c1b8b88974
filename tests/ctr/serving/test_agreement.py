from __future__ import annotations

import math

import numpy as np
import pytest

from ctr.serving.agreement import TOLERANCE, logit_difference


def sigmoid(logit: float) -> np.ndarray:
    return np.float32([1 / (1 + math.exp(-logit))])


@pytest.mark.parametrize(
    ("got", "wanted", "difference"),
    [
        (-1.0, -1.0, 0.0),
        (-0.5, 0.0, 0.5),  # below 1 in absolute terms
        (-2.0, -1.0, 1.0),
        (-1.0, -2.0, 0.5),  # above 1 as a share of the wanted logit
        (-10.0, -8.0, 0.25),
    ],
)
def test_it_is_in_logits_and_relative_above_one(got: float, wanted: float, difference: float):
    assert logit_difference(sigmoid(got), sigmoid(wanted)) == pytest.approx(difference, abs=1e-6)


def test_the_worst_score_counts():
    got, wanted = np.array([[0.5, 0.2], [0.5, 0.5]]), np.array([[0.5, 0.5], [0.5, 0.5]])
    assert logit_difference(got, wanted) == pytest.approx(math.log(4), rel=1e-6)


@pytest.mark.parametrize("rate", [1e-4, 1e-2, 0.5])
def test_a_ten_thousandth_of_a_rare_click_is_beyond_the_tolerance(rate: float):
    """1e-4 of a rate of 1e-4 is 1e-8: a tolerance of probabilities would not see it."""
    rate = np.float32([rate])
    assert logit_difference(rate * np.float32(1 + 1e-4), rate) > TOLERANCE
    assert logit_difference(rate * np.float32(1 + 5e-6), rate) < TOLERANCE


@pytest.mark.parametrize("wanted", [0.999, 0.999999, 1.0])
def test_what_single_precision_cannot_hold_near_one_is_no_difference(wanted: float):
    near = np.float32([wanted])
    assert logit_difference(np.nextafter(near, np.float32(0)), near) == 0
    assert logit_difference(near - np.float32(1e-4), near) > TOLERANCE


def test_no_number_is_no_agreement():
    nothing, half = np.float32([np.nan, 0.5]), np.float32([0.5, 0.5])
    assert math.isnan(logit_difference(nothing, half)) and math.isnan(logit_difference(half, nothing))


def test_zero_and_tiny_probabilities_have_logits_far_apart():
    assert logit_difference(np.float32([0.0]), np.float32([1e-4])) > 1
