"""Paired differences: values by hand, intervals that pair users, groups without both labels."""

from __future__ import annotations

import numpy as np
import pytest

from ctr.evaluation.bootstrap import UserDraws, paired_difference
from ctr.evaluation.metrics import auc, gauc_by_samples, log_loss
from ctr.evaluation.paired import paired_differences
from features.errors import NumericalError

LABELS = np.array([1.0, 0.0, 1.0, 0.0, 0.0])
GROUPS = np.array([7, 7, 3, 3, 9])  # 9 has no click
USERS = np.array([1, 1, 2, 2, 3])
FIRST = np.array([0.9, 0.1, 0.8, 0.2, 0.1])
SECOND = np.array([0.1, 0.9, 0.8, 0.2, 0.1])


def test_values_by_hand() -> None:
    found = paired_differences(LABELS, FIRST, SECOND, GROUPS, clusters=USERS)
    # All of six pairs of a click and none are in order, against 2.5: of 0.1 half of one, of 0.8 two.
    assert found["auc"].value == pytest.approx(1 - 2.5 / 6)
    assert found["group_auc"].value == pytest.approx((1 + 1) / 2 - (0 + 1) / 2)
    assert found["log_loss"].value == pytest.approx(2 * (np.log(0.1) - np.log(0.9)) / 5)


def test_weights_count_rows() -> None:
    weights = np.array([2.0, 1.0, 1.0, 1.0, 3.0])
    found = paired_differences(LABELS, FIRST, SECOND, GROUPS, weights, clusters=USERS)
    expected = gauc_by_samples(LABELS, FIRST, GROUPS, weights) - gauc_by_samples(LABELS, SECOND, GROUPS, weights)
    assert found["group_auc"].value == pytest.approx(expected)
    expected = log_loss(LABELS, FIRST, weights) - log_loss(LABELS, SECOND, weights)
    assert found["log_loss"].value == pytest.approx(expected)


def test_a_light_row_beside_a_heavy_one_counts_in_its_group() -> None:
    weights = np.array([1.0, 1e-20, 1.0, 1.0, 1.0])
    found = paired_differences(LABELS, FIRST, SECOND, GROUPS, weights, clusters=USERS)
    expected = gauc_by_samples(LABELS, FIRST, GROUPS, weights) - gauc_by_samples(LABELS, SECOND, GROUPS, weights)
    assert found["group_auc"].value == pytest.approx(expected)


def rows(count: int = 3000) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Labels, scores, users and requests; some users are hard for every ranker."""
    draw = np.random.default_rng(0)
    users = draw.integers(150, size=count)
    logits = draw.normal(size=count) + draw.normal(size=150)[users]
    labels = (draw.random(count) < 1 / (1 + np.exp(-logits))).astype(float)
    return labels, 1 / (1 + np.exp(-logits)), users, users * 10 + draw.integers(4, size=count)


def test_the_interval_of_auc_is_that_of_the_paired_bootstrap() -> None:
    labels, scores, users, groups = rows()
    other = np.clip(scores + 0.1 * np.random.default_rng(1).normal(size=len(scores)), 0, 1)
    found = paired_differences(labels, scores, other, groups, clusters=users, seed=3)
    assert found["auc"] == pytest.approx(paired_difference(labels, scores, other, clusters=users, seed=3))
    for name in ("group_auc", "log_loss"):
        assert found[name].low < found[name].value < found[name].high


def test_the_interval_of_groups_is_that_of_their_users_drawn() -> None:
    """The same by loops: each group by its own AUC, each user by how often they are drawn."""
    labels, scores, users, groups = rows(600)
    other = np.clip(scores + 0.3 * np.random.default_rng(1).normal(size=len(scores)), 0, 1)
    found = paired_differences(labels, scores, other, groups, clusters=users, seed=3)["group_auc"]
    gained, weight = np.zeros(150), np.zeros(150)
    for group in np.unique(groups):
        mine = groups == group
        if 0 < labels[mine].sum() < mine.sum():
            first, second = (auc(labels[mine], one[mine]) for one in (scores, other))
            gained[users[mine][0]] += (first - second) * mine.sum()
            weight[users[mine][0]] += mine.sum()
    seen = np.unique(users)
    drawn = [times @ gained[seen] / (times @ weight[seen]) for times in UserDraws(users).by_user(3)]
    assert found.value == pytest.approx(gained.sum() / weight.sum())
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(drawn, [2.5, 97.5])))


def test_intervals_of_equal_scores_are_nothing() -> None:
    labels, scores, users, groups = rows()
    found = paired_differences(labels, scores, scores, groups, clusters=users)
    assert {tuple(one) for one in found.values()} == {(0.0, 0.0, 0.0)}


def test_users_are_drawn_with_all_of_their_rows() -> None:
    """Rows that are there four times, under the same user, tell no more than once."""
    labels, scores, users, groups = rows(800)
    other = np.clip(scores + 0.2 * np.random.default_rng(1).normal(size=len(scores)), 0, 1)
    once = paired_differences(labels, scores, other, groups, clusters=users)
    four = paired_differences(*(np.tile(one, 4) for one in (labels, scores, other, groups)), clusters=np.tile(users, 4))
    for name, interval in once.items():
        assert four[name] == pytest.approx(interval, abs=1e-9)


def test_without_a_group_of_both_labels_there_is_no_difference_of_groups() -> None:
    found = paired_differences(LABELS, FIRST, SECOND, np.arange(5), clusters=USERS)
    assert set(found) == {"auc", "log_loss"}


def test_a_score_that_is_no_number_is_refused() -> None:
    with pytest.raises(NumericalError, match="1 of 5 are not finite"):
        paired_differences(LABELS, FIRST, np.where(USERS == 3, np.nan, SECOND), GROUPS, clusters=USERS)
