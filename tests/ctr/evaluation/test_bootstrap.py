"""Intervals against known spreads, and users drawn with all of their rows."""

from __future__ import annotations

import numpy as np
import pytest

from ctr.evaluation.bootstrap import auc_interval, paired_difference
from tests.ctr.evaluation.scored_rows import rows


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
