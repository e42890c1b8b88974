from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest

from ctr.ranking_metrics import groups_of, ranking_metrics, requests_of
from features.errors import DataError
from tests.toy import toy_feature_set


def test_one_list_by_hand():
    # Ranks: 0.9 (no), 0.8 (yes), 0.5 (no), 0.4 (yes).
    found = ranking_metrics(np.array([1, 0, 1, 0]), np.array([0.8, 0.9, 0.4, 0.5]), np.zeros(4))
    assert found["group_auc"] == pytest.approx(1 / 4)
    assert found["mrr"] == pytest.approx((1 / 2 + 1 / 4) / 2)
    best = 1 + 1 / math.log2(3)
    assert found["ndcg_5"] == pytest.approx((1 / math.log2(3) + 1 / math.log2(5)) / best)
    assert found["groups"] == 1


def test_a_cut_stops_counting():
    labels = np.zeros(8)
    labels[6] = 1
    found = ranking_metrics(labels, -np.arange(8.0), np.zeros(8))
    assert (found["ndcg_5"], found["ndcg_10"]) == (0, pytest.approx(1 / math.log2(8)))


def test_ties_share_their_places_whatever_the_order():
    for labels in ([1, 0, 0], [0, 0, 1]):
        found = ranking_metrics(np.array(labels), np.array([0.5, 0.5, 0.5]), np.zeros(3))
        assert found["mrr"] == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
        assert found["group_auc"] == 0.5


def test_groups_are_averaged_and_one_class_is_left_out():
    labels = np.array([1, 0, 0, 1, 1, 1])
    scores = np.array([0.9, 0.1, 0.9, 0.1, 0.5, 0.6])
    found = ranking_metrics(labels, scores, np.array([7, 7, 8, 8, 9, 9]))
    assert (found["groups"], found["group_auc"], found["mrr"]) == (2, 0.5, 0.75)
    assert found["mrr_low"] == 0.5 and found["mrr_high"] == 1.0
    with pytest.raises(DataError, match="both labels"):
        ranking_metrics(np.ones(3), np.zeros(3), np.arange(3))


def test_a_log_without_requests_has_no_lists(tmp_path):
    assert requests_of(toy_feature_set(tmp_path / "toy"), "test") is None


def test_groups_are_requests_where_every_row_has_one_and_else_users():
    users, requests = np.array([4, 4, 5]), np.array([70, 71, 72])

    def log(**columns: np.ndarray) -> SimpleNamespace:
        return SimpleNamespace(rows=lambda _: [{"user": users, **columns}])

    assert groups_of(log(request=requests), "test").tolist() == [70, 71, 72]
    assert groups_of(log(request=np.array([70, -1, 72])), "test").tolist() == [4, 4, 5]
    assert groups_of(log(), "test").tolist() == [4, 4, 5]
