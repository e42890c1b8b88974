"""Metrics against numbers worked out by hand, against scikit-learn, and definitions as loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as reference

from ctr.evaluation.metrics import (
    auc,
    calibration_ratio,
    ece,
    gauc_by_samples,
    group_aucs,
    log_loss,
    normalized_entropy,
    reliability,
)
from features.errors import DataError
from tests.ctr.evaluation.scored_rows import rows


def test_auc_by_hand():
    # Positives .8 and .4, negatives .6 and .2: of the four pairs only (.4, .6) is wrong.
    assert auc(np.array([1, 0, 1, 0]), np.array([0.8, 0.6, 0.4, 0.2])) == 0.75
    # Positives .5 and .9, negatives .5 and .1: the tied pair counts half, 3.5 of 4.
    assert auc(np.array([1, 0, 1, 0]), np.array([0.5, 0.5, 0.9, 0.1])) == 0.875
    assert auc(np.array([1, 0]), np.array([0.3, 0.3])) == 0.5


def test_auc_with_weights_by_hand():
    # Pairs weigh w+ w-: (.4 of 1, .6 of 3) is wrong and weighs 3; right are 2*3 + 2*1 + 1*1 = 9 of 12.
    labels, scores = np.array([1, 0, 1, 0]), np.array([0.8, 0.6, 0.4, 0.2])
    assert auc(labels, scores, np.array([2, 3, 1, 1])) == 0.75
    # Weight 2 is the same as the row twice.
    assert auc(labels, scores, np.array([1, 1, 2, 1])) == auc(np.append(labels, 1), np.append(scores, 0.4))


@pytest.mark.parametrize("ties", [None, 5, 50])
def test_metrics_equal_scikit_learn(ties):
    labels, scores = rows(3000, ties=ties)
    weights = np.random.default_rng(1).random(3000)
    assert auc(labels, scores) == pytest.approx(reference.roc_auc_score(labels, scores), abs=1e-12)
    expected = reference.roc_auc_score(labels, scores, sample_weight=weights)
    assert auc(labels, scores, weights) == pytest.approx(expected, abs=1e-12)
    inside = np.clip(scores, 1e-6, 1 - 1e-6)
    assert log_loss(labels, inside) == pytest.approx(reference.log_loss(labels, inside), abs=1e-12)
    expected = reference.log_loss(labels, inside, sample_weight=weights)
    assert log_loss(labels, inside, weights) == pytest.approx(expected, abs=1e-12)


@given(
    st.lists(st.tuples(st.booleans(), st.integers(-50, 50)), min_size=2, max_size=40).filter(
        lambda drawn: len({label for label, _ in drawn}) == 2
    )
)
def test_auc_sees_only_the_order(drawn):
    labels = np.array([label for label, _ in drawn])
    scores = np.array([score for _, score in drawn], float)
    found = auc(labels, scores)
    assert found == auc(labels, np.exp(scores / 10) * 3 - 7)
    assert found == pytest.approx(1 - auc(labels, -scores), abs=1e-12)
    assert found == pytest.approx(1 - auc(~labels, scores), abs=1e-12)


def test_gauc_by_hand():
    # User 7: positives .9, .2, negative .5: 1 of 2 pairs. User 9: .8 over .1: 1. User 3: one class, left out.
    labels = np.array([1, 1, 0, 1, 0, 1])
    scores = np.array([0.9, 0.2, 0.5, 0.8, 0.1, 0.7])
    users = np.array([7, 7, 7, 9, 9, 3])
    assert gauc_by_samples(labels, scores, users) == pytest.approx((3 * 0.5 + 2 * 1) / 5)
    assert np.isnan(gauc_by_samples(labels, scores, np.arange(6)))


def test_aucs_of_groups_come_in_order_of_appearance():
    labels, scores = np.array([1, 0, 1, 0, 0]), np.array([0.9, 0.1, 0.2, 0.5, 0.4])
    auc_G, weight_G = group_aucs(labels, scores, np.array([9, 9, 7, 7, 7]))
    np.testing.assert_array_equal(auc_G, [1, 0])
    np.testing.assert_array_equal(weight_G, [2, 3])


def test_gauc_equals_a_loop_over_groups():
    labels, scores = rows(4000, seed=3, ties=20)
    users = np.random.default_rng(4).integers(0, 400, 4000)
    found = []
    for user in np.unique(users):
        mine = users == user
        if 0 < labels[mine].sum() < mine.sum():
            found.append((reference.roc_auc_score(labels[mine], scores[mine]), mine.sum()))
    areas, samples = np.array(found).T
    assert gauc_by_samples(labels, scores, users) == pytest.approx(np.average(areas, weights=samples))


def test_gauc_with_weights_by_hand():
    # User 7: positives .9 (weight 2) and .2 (1), negative .5 (3): 6 of 9 pair weights. User 9: 1, weights 4 and 1.
    labels, scores = np.array([1, 1, 0, 1, 0]), np.array([0.9, 0.2, 0.5, 0.8, 0.1])
    users, weights = np.array([7, 7, 7, 9, 9]), np.array([2, 1, 3, 4, 1])
    assert gauc_by_samples(labels, scores, users, weights) == pytest.approx((6 * 6 / 9 + 5 * 1) / 11)


def test_a_heavy_group_changes_no_auc_of_the_groups_after_it():
    # In each group the negatives of weights 2 and 1 lie on both sides of the positive: 2 of 3.
    labels, scores = np.tile([0, 1, 0], 3), np.tile([0.1, 0.5, 0.9], 3)
    weights, groups = np.outer([1e20, 1, 1e-20], [2, 1, 1]).ravel(), np.repeat([0, 1, 2], 3)
    auc_G, weight_G = group_aucs(labels, scores, groups, weights)
    np.testing.assert_allclose(auc_G, 2 / 3, rtol=1e-12)
    np.testing.assert_allclose(weight_G, [4e20, 4, 4e-20])


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.integers(0, 2), st.floats(-45, 38)), min_size=2))
def test_no_group_has_an_auc_outside_0_and_1(drawn):
    labels, scores, groups, exponents = (np.array(values, float) for values in zip(*drawn, strict=True))
    auc_G, _ = group_aucs(labels, scores, groups, 10**exponents)
    assert auc_G.min(initial=0) >= 0
    assert auc_G.max(initial=1) <= 1


def test_a_list_in_the_best_order_has_an_auc_of_1_whatever_its_weights_are_rounded_to():
    labels = np.array([0.0, 0, 1, 0, 0, 0, 1, 0, 0])
    weights = np.array([0.6, 0.9, 0.2, 0.7, 0.3, 0.9, 0.6, 1.1, 0.3])
    auc_G, _ = group_aucs(labels, labels, np.array([0, 0, 0, 0, 1, 1, 2, 2, 2]), weights)
    np.testing.assert_array_equal(auc_G, [1, 1])


def test_normalized_entropy_by_hand():
    labels = np.array([1, 0, 0, 0])
    # Always saying the training rate is worth 1 when the test rate is the same.
    assert normalized_entropy(labels, np.full(4, 0.25), 0.25) == pytest.approx(1)
    # -(ln .5) a row, over the entropy of a quarter.
    entropy = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75))
    assert normalized_entropy(labels, np.full(4, 0.5), 0.25) == pytest.approx(np.log(2) / entropy)


def test_a_sure_mistake_has_a_finite_loss():
    assert log_loss(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == pytest.approx(-np.log(1e-7), rel=1e-6)


def test_calibration_ratio_by_hand():
    labels, scores = np.array([1, 0, 1, 0]), np.array([0.5, 0.1, 0.9, 0.3])
    assert calibration_ratio(labels, scores) == pytest.approx(0.9)
    # (2 * .5 + .1 + .9 + .3) / (2 + 1)
    assert calibration_ratio(labels, scores, np.array([2, 1, 1, 1])) == pytest.approx(2.3 / 3)


def test_reliability_and_ece_by_hand():
    labels = np.array([0, 1, 0, 1, 1, 1])
    scores = np.array([0.1, 0.3, 0.4, 0.6, 0.7, 0.9])
    table = reliability(labels, scores, bins=2)
    np.testing.assert_allclose(table.score, [0.8 / 3, 2.2 / 3])
    np.testing.assert_allclose(table.label, [1 / 3, 1])
    np.testing.assert_array_equal(table.count, [3, 3])
    # (|.8 - 1| + |2.2 - 3|) / 6
    assert ece(labels, scores, bins=2) == pytest.approx(1 / 6)


def test_equal_scores_share_a_bin_whatever_their_order():
    # Sorted by label: cutting the constant score by row number would find bins of rate 0 and 1.
    labels = np.repeat([0, 1], 50)
    assert ece(labels, np.full(100, 0.5)) == pytest.approx(0)
    assert ece(labels, np.full(100, 0.7)) == pytest.approx(0.2)
    labels, scores = rows(2000, ties=30)
    shuffled = np.random.default_rng(2).permutation(2000)
    assert ece(labels, scores) == pytest.approx(ece(labels[shuffled], scores[shuffled]), abs=1e-12)


def test_bins_without_ties_hold_equal_shares():
    labels, scores = rows(1003)
    assert sorted(set(reliability(labels, scores, bins=20).count)) == [50, 51]


def test_true_probabilities_are_calibrated_and_squeezed_ones_are_not():
    labels, scores = rows(100_000)
    assert ece(labels, scores) < 0.01
    assert ece(labels, scores / 2 + 0.25) > 0.1


def test_a_training_set_of_one_class_is_explained():
    with pytest.raises(DataError, match=r"interactions\.label"):
        normalized_entropy(np.array([0, 1]), np.array([0.5, 0.5]), base_rate=0.0)


@pytest.mark.parametrize("weights", [[0, 0], [1, -1], [1, np.nan]])
def test_weights_that_weigh_nothing_are_refused(weights):
    with pytest.raises(DataError, match="weights"):
        auc(np.array([0, 1]), np.array([0.1, 0.2]), np.array(weights))
