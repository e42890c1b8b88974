"""Negatives drawn at a known rate: what is served are the probabilities of the log as it happened."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ctr.export.export_bundle import for_serving
from ctr.export.parity import expected, grid_requests
from ctr.model.calibrator import Curve
from features.store.feature_set import Sampling
from tests.ctr import small_world

# p / (p + (1 - p) / rate) at a rate of 0.1: 0.5 / (0.5 + 5), 0.9 / (0.9 + 1) and 0.01 / (0.01 + 9.9).
LEARNED = [0.5, 0.9, 0.01]
SERVED = [1 / 11, 9 / 19, 1 / 991]


def logits(probabilities: list[float]) -> torch.Tensor:
    return torch.tensor([math.log(p / (1 - p)) for p in probabilities])


@pytest.mark.parametrize(("rate", "served"), [(0.1, SERVED), (1.0, LEARNED), (None, LEARNED)])
def test_a_rate_of_a_tenth_divides_the_odds_by_ten(rate: float | None, served: list[float]) -> None:
    model = small_world.model(torch.float32)
    found = for_serving(model, Sampling(drawn=90, per_positive=9.0, rate=rate))
    assert torch.sigmoid(found.calibrator(logits(LEARNED))).tolist() == pytest.approx(served, rel=1e-5)


def test_a_log_without_drawn_negatives_is_served_as_it_was_learned() -> None:
    model = small_world.model(torch.float32)
    assert torch.sigmoid(for_serving(model, None).calibrator(logits(LEARNED))).tolist() == pytest.approx(LEARNED)


def test_the_correction_follows_the_calibration_and_leaves_the_trained_model_alone() -> None:
    model = small_world.model(torch.float32)
    model.calibrator.set(Curve(slope=2.0, shift=math.log(3)))
    served = for_serving(model, Sampling(drawn=90, per_positive=9.0, rate=0.1))
    # A logit of 0 is calibrated to odds of 3, in the log as it happened 0.3.
    assert torch.sigmoid(served.calibrator(torch.zeros(1))).tolist() == pytest.approx([0.3 / 1.3])
    assert torch.sigmoid(model.calibrator(torch.zeros(1))).tolist() == pytest.approx([0.75])
    case = next(case for case in grid_requests(small_world.SCHEMA) if len(case.candidate_item) > 1)
    learned_NH, served_NH = expected(model.eval(), case), expected(served.eval(), case)
    np.testing.assert_allclose(served_NH / (1 - served_NH), 0.1 * learned_NH / (1 - learned_NH), rtol=1e-4)


def test_what_is_served_drops_nothing_though_the_model_was_left_in_training() -> None:
    model = small_world.model(torch.float32)
    assert not for_serving(model.train(), None).training
    assert model.training
