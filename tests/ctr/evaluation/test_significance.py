from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import t as student

from ctr.evaluation.bootstrap import Interval
from ctr.evaluation.metrics import auc
from ctr.evaluation.significance import SeededAuc, holm, resolved, seeded_aucs, seeded_list_aucs
from features.errors import DataError


def drawn(rows: int = 2000, seeds: int = 3) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    signal = draw.normal(size=rows)
    labels = (signal + draw.normal(size=rows) > 0).astype(float)
    return labels, signal + 0.3 * draw.normal(size=(seeds, rows))


def test_the_value_is_the_mean_over_seeds():
    labels, scores_SN = drawn()
    found = seeded_aucs(labels, {"a": scores_SN}, clusters=np.arange(2000))["a"]
    interval = found.interval()
    assert interval.value == pytest.approx(np.mean([auc(labels, one) for one in scores_SN]))
    assert interval.low < interval.value < interval.high


def test_a_ranker_is_not_better_than_itself_and_pairing_is_sharp():
    labels, scores_SN = drawn()
    worse = scores_SN + 0.2 * np.random.default_rng(1).normal(size=scores_SN.shape)
    rankers = {"a": scores_SN[:1], "again": scores_SN[:1], "worse": worse[:1]}
    found = seeded_aucs(labels, rankers, clusters=np.arange(2000))
    assert found["a"].minus(found["again"]) == (0, 0, 0, 1)
    difference = found["a"].minus(found["worse"])
    assert difference.low > 0 and difference.p < 0.05
    # Hard rows are hard for both: the difference is known better than either value.
    own = found["a"].interval()
    assert difference.high - difference.low < 0.7 * (own.high - own.low)


def test_users_are_drawn_with_all_of_their_rows():
    # Each user's ten rows are copies of one: their luck is that of 200 rows, not of 2,000.
    labels, scores_SN = drawn(200, seeds=2)
    labels, scores_SN = np.repeat(labels, 10), np.repeat(scores_SN, 10, axis=1)
    worse_SN = scores_SN + np.repeat(np.random.default_rng(1).normal(size=200), 10)
    widths = []
    for clusters in (np.arange(2000), np.repeat(np.arange(200), 10)):
        found = seeded_aucs(labels, {"a": scores_SN[:1], "b": worse_SN[:1]}, clusters=clusters)
        own, apart = found["a"].interval(), found["a"].minus(found["b"])
        widths.append([own.high - own.low, apart.high - apart.low])
    np.testing.assert_allclose(np.divide(*reversed(widths)), np.sqrt(10), rtol=0.25)


def test_the_spread_of_two_seeds_is_not_halved_by_hand():
    # No luck of users. AUC 0.70 and 0.72: s² = 0.0002, of the mean 0.0001; one degree of freedom.
    found = SeededAuc(np.array([0.70, 0.72]), np.full(10, 0.71), users=100).interval()
    assert found.high - found.value == pytest.approx(student.ppf(0.975, 1) * 0.01)
    # One seed: users alone, whose resamples have a variance of 0.01² · 10 / 9.
    alone = SeededAuc(np.array([0.71]), 0.71 + 0.01 * np.array([1, -1] * 5), users=100).interval()
    assert alone.high - alone.value == pytest.approx(student.ppf(0.975, 99) * 0.01 * np.sqrt(10 / 9))


def test_no_interval_reaches_beyond_what_an_auc_can_be():
    # Of three users little is known: Student's interval alone would be 0.95 ± 4.30 · 0.1.
    drawn_B = np.array([0.85, 0.95, 1.05])
    assert SeededAuc(np.array([0.95]), drawn_B, users=3).interval() == (0.95, pytest.approx(0.95 - 4.302653 * 0.1), 1)
    assert SeededAuc(np.array([0.05]), 1 - drawn_B, users=3).interval().low == 0


def test_both_kinds_of_luck_add_up_by_hand():
    # Users: variance 0.0001 of 50 degrees; three seeds each: s² / 3 = 0.0001 / 3 of 2 degrees.
    users = 0.71 + 0.01 * np.sqrt(0.9) * np.array([1, -1] * 5)
    a = SeededAuc(np.array([0.70, 0.71, 0.72]), users, users=51)
    b = SeededAuc(np.array([0.60, 0.61, 0.62]), np.full(10, 0.61), users=51)
    variances = np.array([1e-4, 1e-4 / 3, 1e-4 / 3])
    degrees = variances.sum() ** 2 / (variances**2 / np.array([50, 2, 2])).sum()
    found = a.minus(b)
    assert found.value == pytest.approx(0.1)
    assert found.high - found.value == pytest.approx(student.ppf(0.975, degrees) * np.sqrt(variances.sum()))
    assert found.p == pytest.approx(2 * student.sf(0.1 / np.sqrt(variances.sum()), degrees))


def test_intervals_of_two_seeds_hold_the_truth_as_often_as_they_say():
    # AUCs that differ by seed alone, around 0.7. Of such intervals 95 % hold it; from drawn seeds it would be half.
    draw = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        found = SeededAuc(draw.normal(0.7, 0.01, 2), np.zeros(5), users=100).interval()
        hits += found.low <= 0.7 <= found.high
    assert 365 <= hits <= 395


def test_a_weight_of_two_is_the_row_twice():
    labels, scores_SN = drawn(300, seeds=2)
    users, weights = np.arange(300) % 40, 1 + np.arange(300) % 3
    weighed = seeded_aucs(labels, {"a": scores_SN}, weights, clusters=users)["a"]
    rows = np.repeat(np.arange(300), weights)
    repeated = seeded_aucs(labels[rows], {"a": scores_SN[:, rows]}, clusters=users[rows])["a"]
    np.testing.assert_allclose(weighed.by_seed, repeated.by_seed)
    np.testing.assert_allclose(weighed.drawn, repeated.drawn)


def test_holm_by_hand():
    # 3 · 0.01; 2 · 0.04, which 1 · 0.03 may not undercut: the order stays that of the p-values.
    assert holm({"a": 0.04, "b": 0.01, "c": 0.03}) == pytest.approx({"a": 0.06, "b": 0.03, "c": 0.06})
    assert holm({"a": 0.6, "b": 0.9}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


def test_what_one_comparison_resolves_many_may_not():
    # Two and a half standard errors of 1: p = 0.012. Of five such numbers Holm asks for 0.01.
    half = 1.959964
    one = Interval(2.5, 2.5 - half, 2.5 + half)
    nothing = Interval(0.0, -half, half)
    assert resolved([one]) == [True]
    assert resolved([one, *[nothing] * 4]) == [False] * 5
    sure = Interval(9.0, 9 - half, 9 + half)
    assert resolved([nothing, sure, Interval(0.0, 0.0, 0.0)]) == [False, True, False]


def test_what_cannot_be_compared_is_refused():
    labels, scores_SN = drawn()
    users = np.arange(2000)
    with pytest.raises(DataError, match="scores of a"):
        seeded_aucs(labels, {"a": scores_SN[:, :-1]}, clusters=users)
    with pytest.raises(DataError, match="both classes"):
        seeded_aucs(np.ones(len(labels)), {"a": scores_SN}, clusters=users)
    with pytest.raises(DataError, match="of one user"):
        seeded_aucs(labels, {"a": scores_SN}, clusters=np.zeros(2000))
    # The label of a row without a weight is not what is counted.
    with pytest.raises(DataError, match="0 of 2 rows with a weight are positive"):
        seeded_aucs(
            np.array([1.0, 0, 0]), {"a": np.array([[0.1, 0.2, 0.3]])}, np.array([0.0, 1, 1]), clusters=np.arange(3)
        )


def test_the_auc_within_lists_by_hand():
    """Lists of one class count nothing; seed 1 is right in the first list and wrong in the second, seed 2 in both."""
    labels = np.array([1, 0, 0, 1, 1, 1])
    lists, users = np.array([9, 9, 3, 3, 1, 1]), np.array([0, 0, 1, 1, 2, 2])
    scores_SN = np.array([[0.9, 0.1, 0.8, 0.2, 0.5, 0.6], [0.9, 0.1, 0.2, 0.8, 0.5, 0.6]])
    found = seeded_list_aucs(labels, {"a": scores_SN}, lists, clusters=users)["a"]
    assert found.by_seed.tolist() == [0.5, 1.0] and found.users == 2
    weighed = seeded_list_aucs(labels, {"a": scores_SN}, lists, np.array([3, 3, 1, 1, 1, 1]), clusters=users)["a"]
    assert weighed.by_seed.tolist() == [0.75, 1.0]
    # A resample has the first list alone, the second alone, or both.
    assert sorted({round(float(one), 6) for one in found.drawn}) == [0.5, 0.75, 1.0]


def test_lists_of_one_user_are_drawn_together_and_rankers_on_the_same_users():
    draw = np.random.default_rng(0)
    labels, lists = np.tile([1.0, 0.0], 1000), np.repeat(np.arange(1000), 2)
    hard = np.repeat(draw.random(40) < 0.5, 25)
    scores = np.stack([~hard, hard], axis=1).ravel()[None].astype(float)
    users = np.repeat(np.arange(40), 50)
    by_user, by_list = (seeded_list_aucs(labels, {"a": scores}, lists, clusters=one)["a"] for one in (users, lists))
    widths = [one.interval().high - one.interval().low for one in (by_user, by_list)]
    assert widths[0] / widths[1] == pytest.approx(5, rel=0.25)
    again = seeded_list_aucs(labels, {"a": scores, "b": scores}, lists, clusters=users)
    assert again["a"].minus(again["b"]) == (0, 0, 0, 1)


def test_without_a_list_of_both_classes_there_is_nothing_to_judge():
    labels, scores = np.array([1.0, 0.0]), np.array([[0.2, 0.1]])
    assert seeded_list_aucs(labels, {"a": scores}, np.array([0, 1]), clusters=np.array([0, 1])) == {}
    assert seeded_list_aucs(labels, {"a": scores}, np.array([0, 0]), clusters=np.array([0, 0])) == {}, "one user"


def test_the_same_trainings_differ_by_nothing_for_certain():
    labels, scores_SN = drawn()
    found = seeded_aucs(labels, {"a": scores_SN, "again": scores_SN.copy()}, clusters=np.arange(2000))
    assert found["a"].minus(found["a"]) == (0, 0, 0, 1)
    # Other trainings that happen to be as good may not be so the next time.
    again = found["a"].minus(found["again"])
    assert again.value == 0 and again.low < 0 < again.high
