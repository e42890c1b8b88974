"""Metrics against numbers worked out by hand, against scikit-learn, and definitions as loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as reference

from ctr.evaluation.metrics import (
    auc,
    auc_interval,
    calibration_ratio,
    ece,
    evaluate,
    gauc_by_positives,
    gauc_by_samples,
    gauc_unweighted,
    log_loss,
    normalized_entropy,
    paired_difference,
    reliability,
)
from features.errors import DataError, NumericalError


def rows(count: int, seed: int = 0, ties: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn with the probabilities that are the scores; `ties` rounds them to so many steps."""
    draw = np.random.default_rng(seed)
    scores = draw.beta(1, 3, count)
    labels = (draw.random(count) < scores).astype(np.float32)
    return labels, scores if ties is None else np.round(scores * ties) / ties


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
    # User a: positives .9, .2, negative .5: 1 of 2 pairs. User b: .8 over .1: 1. User c: one class, left out.
    labels = np.array([1, 1, 0, 1, 0, 1])
    scores = np.array([0.9, 0.2, 0.5, 0.8, 0.1, 0.7])
    users = np.array([7, 7, 7, 9, 9, 3])
    assert gauc_by_samples(labels, scores, users) == pytest.approx((3 * 0.5 + 2 * 1) / 5)
    assert gauc_by_positives(labels, scores, users) == pytest.approx((2 * 0.5 + 1 * 1) / 3)
    assert gauc_unweighted(labels, scores, users) == pytest.approx(0.75)
    assert np.isnan(gauc_unweighted(labels, scores, np.arange(6)))


def test_gauc_equals_a_loop_over_groups():
    labels, scores = rows(4000, seed=3, ties=20)
    users = np.random.default_rng(4).integers(0, 400, 4000)
    found = []
    for user in np.unique(users):
        mine = users == user
        if 0 < labels[mine].sum() < mine.sum():
            area = reference.roc_auc_score(labels[mine], scores[mine])
            found.append((area, mine.sum(), labels[mine].sum()))
    areas, samples, positives = np.array(found).T
    assert gauc_by_samples(labels, scores, users) == pytest.approx(np.average(areas, weights=samples))
    assert gauc_by_positives(labels, scores, users) == pytest.approx(np.average(areas, weights=positives))
    assert gauc_unweighted(labels, scores, users) == pytest.approx(areas.mean())


def test_gauc_with_weights_by_hand():
    # User 7: positives .9 (weight 2) and .2 (1), negative .5 (3): 6 of 9 pair weights. User 9: 1, weights 4 and 1.
    labels, scores = np.array([1, 1, 0, 1, 0]), np.array([0.9, 0.2, 0.5, 0.8, 0.1])
    users, weights = np.array([7, 7, 7, 9, 9]), np.array([2, 1, 3, 4, 1])
    assert gauc_by_samples(labels, scores, users, weights) == pytest.approx((6 * 6 / 9 + 5 * 1) / 11)
    assert gauc_by_positives(labels, scores, users, weights) == pytest.approx((3 * 6 / 9 + 4 * 1) / 7)
    assert gauc_unweighted(labels, scores, users, weights) == pytest.approx((6 / 9 + 1) / 2)


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


def test_the_interval_covers_the_true_auc_about_as_often_as_it_says():
    # Normal scores one deviation apart: AUC = Phi(1 / sqrt 2) = 0.7602.
    draw = np.random.default_rng(0)
    hits, widths = 0, []
    for trial in range(300):
        labels = np.repeat([0, 1], 150)
        found = auc_interval(labels, draw.normal(size=300) + labels, clusters=np.arange(300), seed=trial)
        hits += found.low <= 0.76025 <= found.high
        widths.append(found.high - found.low)
        assert found.low < found.value < found.high
    # 285 expected, with a deviation of 3.8; an interval of half the width would hit about 201 times.
    assert 270 <= hits <= 297
    # The deviation of the AUC itself over many such draws is 0.0273.
    assert np.mean(widths) == pytest.approx(2 * 1.96 * 0.0273, rel=0.05)


def test_drawing_clusters_is_wider_where_rows_of_a_user_agree():
    # Every user's ten rows are copies: a hundred independent observations, not a thousand.
    labels, scores = rows(100, seed=5)
    labels, scores, users = np.repeat(labels, 10), np.repeat(scores, 10), np.repeat(np.arange(100), 10)
    by_row = auc_interval(labels, scores, clusters=np.arange(1000))
    by_user = auc_interval(labels, scores, clusters=users)
    assert by_user.value == by_row.value
    assert (by_user.high - by_user.low) / (by_row.high - by_row.low) == pytest.approx(np.sqrt(10), rel=0.25)


def test_the_paired_interval_resolves_what_two_intervals_cannot():
    labels, scores = rows(5000, seed=6)
    worse = scores + np.random.default_rng(7).normal(0, 0.03, 5000)
    apart = np.arange(5000)
    alone, other = (auc_interval(labels, one, clusters=apart) for one in (scores, worse))
    found = paired_difference(labels, scores, worse, clusters=apart)
    assert found.value == pytest.approx(alone.value - other.value)
    assert found.low > 0
    assert alone.low < other.high
    assert paired_difference(labels, scores, scores * 2, clusters=apart) == (0.0, 0.0, 0.0)


def test_the_bootstrap_is_seeded():
    labels, scores = rows(2_000)
    users = np.random.default_rng(3).integers(0, 200, 2_000)
    first = auc_interval(labels, scores, clusters=users, seed=1)
    assert first == auc_interval(labels, scores, clusters=users, seed=1)
    assert first != auc_interval(labels, scores, clusters=users, seed=2)


def test_an_interval_of_weighted_rows_is_that_of_repeated_rows():
    labels, scores = rows(300, seed=4)
    # Not the same for a class: that would leave AUC as it is.
    users, weights = np.arange(300) // 3, 1 + np.arange(300) % 3
    twice = np.repeat(np.arange(300), weights)
    weighted = auc_interval(labels, scores, weights.astype(float), clusters=users)
    repeated = auc_interval(labels[twice], scores[twice], clusters=users[twice])
    assert weighted == pytest.approx(repeated)


def test_the_paired_interval_draws_users():
    # Each user's ten rows are copies: of the hundred users, not of the thousand rows, there is luck.
    labels, scores = rows(100, seed=6)
    worse = scores + np.random.default_rng(7).normal(0, 0.1, 100)
    labels, scores, worse = (np.repeat(one, 10) for one in (labels, scores, worse))
    by_row, by_user = (
        paired_difference(labels, scores, worse, clusters=clusters)
        for clusters in (np.arange(1000), np.repeat(np.arange(100), 10))
    )
    assert (by_user.high - by_user.low) / (by_row.high - by_row.low) == pytest.approx(np.sqrt(10), rel=0.25)


def test_evaluate_gives_what_the_single_functions_give():
    labels, scores = rows(2000)
    users = np.random.default_rng(8).integers(0, 100, 2000)
    weights = np.random.default_rng(9).random(2000)
    # Not the rows' rate of about a quarter.
    found = evaluate(labels, scores, users, 0.1, weights, seed=4)
    interval = auc_interval(labels, scores, weights, clusters=users, seed=4)
    expected = {
        "auc": auc(labels, scores, weights),
        "auc_low": interval.low,
        "auc_high": interval.high,
        "gauc_by_samples": gauc_by_samples(labels, scores, users, weights),
        "gauc_by_positives": gauc_by_positives(labels, scores, users, weights),
        "gauc_unweighted": gauc_unweighted(labels, scores, users, weights),
        "log_loss": log_loss(labels, scores, weights),
        "normalized_entropy": normalized_entropy(labels, scores, 0.1, weights),
        "calibration_ratio": calibration_ratio(labels, scores, weights),
        "ece": ece(labels, scores, weights=weights),
    }
    assert found == pytest.approx(expected, abs=1e-12)
    assert len(set(expected.values())) == 10, "two of them are equal, so that they could be exchanged"
    assert list(found) == list(expected) and all(type(value) is float for value in found.values())


def test_evaluate_leaves_out_what_does_not_exist():
    labels, scores = rows(2000)
    users = np.random.default_rng(8).integers(0, 100, 2000)
    everything = set(evaluate(labels, scores, users, 0.25))
    assert everything - set(evaluate(labels, scores, users, 0.25, intervals=False)) == {"auc_low", "auc_high"}
    # One row a user: there is no GAUC. One user: no other users are known. 999 rows: ECE would be chance.
    gaucs = {"gauc_by_samples", "gauc_by_positives", "gauc_unweighted"}
    assert everything - set(evaluate(labels, scores, np.arange(2000), 0.25)) == gaucs
    assert everything - set(evaluate(labels, scores, np.zeros(2000), 0.25)) == {"auc_low", "auc_high"}
    assert everything - set(evaluate(labels[:999], scores[:999], users[:999], 0.25)) == {"ece"}


@pytest.mark.parametrize(
    ("labels", "scores", "error", "message"),
    [
        ([1, 1, 1], [0.1, 0.2, 0.3], DataError, "needs both classes, but 3 of 3"),
        ([0, 0], [0.1, 0.2], DataError, "needs both classes, but 0 of 2"),
        ([0, 3], [0.1, 0.2], DataError, r"1 of 2 are not 0 or 1, e.g. 3"),
        ([0, 1], [0.1, 0.2, 0.3], DataError, "shape"),
        ([], [], DataError, "no rows"),
        ([0, 1], [0.1, np.nan], NumericalError, "1 of 2 are not finite, the first in row 1"),
        ([0, 1], [0.1, 1.5], NumericalError, "expected probabilities"),
    ],
)
def test_what_cannot_be_measured_is_explained(labels, scores, error, message):
    with pytest.raises(error, match=message):
        evaluate(np.array(labels), np.array(scores), np.zeros(len(labels)), 0.5)


def test_a_training_set_of_one_class_is_explained():
    with pytest.raises(DataError, match=r"interactions\.label"):
        normalized_entropy(np.array([0, 1]), np.array([0.5, 0.5]), base_rate=0.0)


@pytest.mark.parametrize("weights", [[0, 0], [1, -1], [1, np.nan]])
def test_weights_that_weigh_nothing_are_refused(weights):
    with pytest.raises(DataError, match="weights"):
        auc(np.array([0, 1]), np.array([0.1, 0.2]), np.array(weights))
