from __future__ import annotations

import math
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest

from ctr.evaluation.ranking_metrics import groups_of, list_auc, ranking_metrics, requests_of
from features.errors import DataError
from tests.listed import built_lists, stored_rows
from tests.toy import toy_feature_set


def test_one_list_by_hand():
    # Ranks: 0.9 (no), 0.8 (yes), 0.5 (no), 0.4 (yes).
    found = ranking_metrics(np.array([1, 0, 1, 0]), np.array([0.8, 0.9, 0.4, 0.5]), np.zeros(4), clusters=np.arange(4))
    assert found["group_auc"] == pytest.approx(1 / 4)
    assert found["mrr"] == pytest.approx((1 / 2 + 1 / 4) / 2)
    best = 1 + 1 / math.log2(3)
    assert found["ndcg_5"] == pytest.approx((1 / math.log2(3) + 1 / math.log2(5)) / best)
    assert found["groups"] == 1


def test_a_cut_stops_counting():
    labels = np.zeros(8)
    labels[6] = 1
    found = ranking_metrics(labels, -np.arange(8.0), np.zeros(8), clusters=np.zeros(8))
    assert (found["ndcg_5"], found["ndcg_10"]) == (0, pytest.approx(1 / math.log2(8)))


def test_ties_share_their_places_whatever_the_order():
    for labels in ([1, 0, 0], [0, 0, 1]):
        found = ranking_metrics(np.array(labels), np.array([0.5, 0.5, 0.5]), np.zeros(3), clusters=np.zeros(3))
        assert found["mrr"] == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
        assert found["group_auc"] == 0.5


def test_groups_are_averaged_and_one_class_is_left_out():
    labels = np.array([1, 0, 0, 1, 1, 1])
    scores = np.array([0.9, 0.1, 0.9, 0.1, 0.5, 0.6])
    found = ranking_metrics(labels, scores, np.array([7, 7, 8, 8, 9, 9]), clusters=np.array([1, 1, 2, 2, 2, 2]))
    assert (found["groups"], found["group_auc"], found["mrr"]) == (2, 0.5, 0.75)
    assert found["mrr_low"] == 0.5 and found["mrr_high"] == 1.0
    with pytest.raises(DataError, match="both labels"):
        ranking_metrics(np.ones(3), np.zeros(3), np.arange(3), clusters=np.arange(3))


def test_a_list_weighs_the_mean_of_its_rows():
    labels, scores, groups = np.array([1, 0, 0, 1]), np.array([0.9, 0.1, 0.9, 0.1]), np.array([7, 7, 8, 8])
    found = ranking_metrics(labels, scores, groups, np.array([2, 4, 1, 1]), clusters=groups)
    # AUC 1 of weight 3, AUC 0 of weight 1; MRR 1 and 1/2.
    assert (found["group_auc"], found["mrr"]) == (0.75, pytest.approx((3 * 1 + 1 / 2) / 4))
    # The first list three times.
    rows, lists = [0, 1] * 3 + [2, 3], np.repeat(np.arange(4), 2)
    repeated = ranking_metrics(labels[rows], scores[rows], lists, clusters=lists)
    assert repeated["ndcg_5"] == pytest.approx(found["ndcg_5"])
    assert list_auc(labels, scores, groups, np.array([2, 4, 1, 1])) == 0.75
    assert math.isnan(list_auc(labels, scores, groups, np.zeros(4)))
    with pytest.raises(DataError, match="weigh 0"):
        ranking_metrics(labels, scores, groups, np.array([0, 0, 0, 0]), clusters=groups)


def test_lists_of_one_user_are_drawn_together():
    # 40 users with 25 lists each, all alike: of 40 users, not of 1,000 lists, there is luck.
    draw = np.random.default_rng(0)
    right = np.repeat(draw.random(40) < 0.5, 25)
    labels = np.tile([1, 0], 1000)
    scores = np.stack([right, ~right], axis=1).ravel().astype(float)
    lists, users = np.repeat(np.arange(1000), 2), np.repeat(np.arange(40), 50)
    by_list, by_user = (ranking_metrics(labels, scores, lists, clusters=one) for one in (lists, users))
    assert by_user["mrr"] == by_list["mrr"]
    widths = [found["mrr_high"] - found["mrr_low"] for found in (by_list, by_user)]
    assert widths[1] / widths[0] == pytest.approx(5, rel=0.25)


def test_one_user_has_no_interval():
    found = ranking_metrics(np.array([1, 0]), np.array([0.9, 0.1]), np.zeros(2), clusters=np.zeros(2))
    assert set(found) == {"groups", "group_auc", "mrr", "ndcg_5", "ndcg_10"}


@pytest.mark.filterwarnings("error")
def test_users_without_a_weight_are_drawn_and_count_nothing():
    labels, scores, users = np.tile([1, 0], 3), np.array([0.9, 0.1, 0.1, 0.9, 0.9, 0.1]), np.repeat([0, 1, 2], 2)
    found = ranking_metrics(labels, scores, users, np.array([1, 1, 1, 1, 0, 0]), clusters=users)
    # Of one user alone, or of both.
    assert [found["group_auc_low"], found["group_auc"], found["group_auc_high"]] == [0, 0.5, 1]
    alone = ranking_metrics(labels, scores, users, np.array([1, 1, 0, 0, 0, 0]), clusters=users)
    assert "group_auc_low" not in alone


def test_a_log_without_requests_has_no_lists(tmp_path):
    assert requests_of(toy_feature_set(tmp_path / "toy"), "test") is None


def test_groups_are_requests_where_every_row_has_one_and_else_users():
    users, requests = np.array([4, 4, 5]), np.array([70, 71, 72])

    def log(**columns: np.ndarray) -> SimpleNamespace:
        return SimpleNamespace(rows=lambda _: [{"user": users, **columns}])

    assert groups_of(log(request=requests), "test").tolist() == [0, 1, 2]
    assert groups_of(log(request=np.array([70, -1, 72])), "test").tolist() == [4, 4, 5]
    assert groups_of(log(), "test").tolist() == [4, 4, 5]


def test_requests_that_are_numbered_for_each_user_are_told_apart():
    """Two users have a request 0, and the second one has a request 1 in two parts, which are two days."""
    parts = [
        {"user": np.array([4, 4, 5, 5]), "request": np.array([0, 0, 0, 1])},
        {"user": np.array([5, 5]), "request": np.array([1, 1])},
    ]
    found = requests_of(SimpleNamespace(rows=lambda _: parts), "test")
    assert [found[row] == found[row + 1] for row in range(5)] == [True, False, False, False, True]
    assert len(set(found.tolist())) == 4


def test_metrics_of_a_log_with_pages_of_each_user_are_those_of_its_lists(tmp_path):
    built = built_lists(tmp_path)
    rows = stored_rows(built)
    lists = [(row["user"], row["page"]) for row in rows if row["split"] == "test"]
    found = requests_of(built, "test")
    assert found.max() + 1 == len(set(lists)) > len({page for _, page in lists})
    for first, second in combinations(range(len(lists)), 2):
        assert (found[first] == found[second]) == (lists[first] == lists[second])
