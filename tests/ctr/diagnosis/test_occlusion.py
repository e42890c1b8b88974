from __future__ import annotations

import numpy as np
import pytest
import torch

from ctr.diagnosis.occlusion import explain
from ctr.export.parity import expected
from ctr.export.row_request import RowRequest
from tests.ctr import small_world


def case(history: list[int], candidates: list[int]) -> RowRequest:
    draw = np.random.default_rng(0)
    return RowRequest(
        user=3,
        history_item=np.array(history, np.int64),
        candidate_item=np.array(candidates, np.int64),
        context={"age": np.array([2]), "load": np.array([0.5], np.float32)},
        history_events={
            "label": draw.integers(1, 4, len(history)),
            "residual": draw.normal(size=len(history)).astype(np.float32),
        },
        candidate={name: draw.normal(size=len(candidates)).astype(np.float32) for name in ("rate", "count")},
    )


@pytest.mark.parametrize("settings", [{}, {"attention": "none", "evidence_heads": 3}, {"use_history": False}])
def test_scores_are_the_models_and_tables_come_back(settings):
    model = small_world.model(torch.float32, **settings).eval()
    request = case([4, 9, 7], [5, 6])
    before = expected(model, request)
    found = explain(model, small_world.tables(), request)
    np.testing.assert_allclose([one.score for one in found], before[:, 0], atol=1e-6)
    np.testing.assert_array_equal(expected(model, request), before)
    assert [one.item for one in found] == [5, 6]


def test_weights_are_those_of_the_attention_heaviest_first():
    model = small_world.model(torch.float32).eval()
    request = case([4, 9, 7], [5])
    with torch.no_grad():
        weights = model.attention.weights(model.history(request.batch(model.schema.history_max_len)))[0, -3:]
    (one,) = explain(model, small_world.tables(), request)
    share = (weights / weights.sum()).tolist()
    assert dict(one.past) == {place: pytest.approx(value) for place, value in enumerate(share) if value > 0}
    assert [weight for _, weight in one.past] == sorted((weight for _, weight in one.past), reverse=True)


def test_a_field_that_the_model_does_not_read_contributes_nothing():
    model = small_world.model(torch.float32).eval()
    with torch.no_grad():
        model.item_encoder.vectors[0].projection.weight.zero_()
        model.item_encoder.vectors[0].missing.zero_()
        model.context_encoder.tables[2].weight[1:] = 1.0  # all ages alike
    (one,) = explain(model, small_world.tables(), case([4, 9, 7, 12], [5]))
    assert one.contributions["text vector"] == pytest.approx(0, abs=1e-6)
    assert one.contributions["age"] == pytest.approx(0, abs=1e-6)
    assert abs(one.contributions["image vector"]) > 1e-3 and abs(one.contributions["history"]) > 1e-3


def test_an_empty_history_speaks_for_nothing():
    model = small_world.model(torch.float32).eval()
    (one,) = explain(model, small_world.tables(), case([], [5]))
    assert one.past == [] and one.contributions["history"] == 0


def test_events_that_speak_against_a_candidate_have_negative_weights():
    model = small_world.model(torch.float32, attention="din").eval()
    request = case([4, 9, 7], [5])
    with torch.no_grad():
        model.attention.score.weight.copy_(model.attention.score.weight.abs())
        model.attention.score.bias.fill_(0)
        weights = model.attention.weights(model.history(request.batch(model.schema.history_max_len)))[0, -3:]
        # Half way between the least and the middle one: one event against, two for.
        model.attention.score.bias.sub_(weights.sort().values[:2].mean())
    (one,) = explain(model, small_world.tables(), request)
    assert sorted(weight > 0 for _, weight in one.past) == [False, True, True]
    assert sum(abs(weight) for _, weight in one.past) == pytest.approx(1)
    sizes = [abs(weight) for _, weight in one.past]
    assert sizes == sorted(sizes, reverse=True)
