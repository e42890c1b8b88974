"""Negatives: drawn as of each positive's time, by chance that the seed fixes, never what the future tells."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.contract.log import Negatives
from features.point_in_time.negatives import NONE, draw_negatives

HOUR = 3_600_000_000
SPECS = [Negatives(per_positive=3, how=how, window="2h", seed=7) for how in ("uniform", "popularity", "in_window")]


def drawn_items(user, item, time, spec) -> np.ndarray:
    hashes = [np.arange(rows.max() + 1).astype(np.uint64) for rows in (user, item)]
    return draw_negatives(user, item, time, spec, *hashes).items_RK


def log(rows: int, seed: int = 0, users: int = 5, items: int = 9) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    time = np.sort(rng.integers(0, 3 + rows // 3, rows)) * HOUR // 4
    return rng.integers(2, 2 + users, rows), rng.integers(2, 2 + items, rows), time


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(0, 1000), st.sampled_from(SPECS), st.randoms(use_true_random=False))
def test_what_is_drawn_was_there_and_not_taken(rows, seed, spec, random):
    user, item, time = log(rows, seed)
    order = np.array(random.sample(range(rows), rows))
    user, item, time = user[order], item[order], time[order]
    drawn = drawn_items(user, item, time, spec)
    for r in range(rows):
        real = [one for one in drawn[r] if one != NONE]
        assert len(set(real)) == len(real)
        taken_by_now = set(item[(user == user[r]) & (time <= time[r])])
        earliest = time[r] - spec.window if spec.how == "in_window" else -1
        there = set(item[(time < time[r]) & (time >= earliest)])
        assert set(real) <= there - taken_by_now
        if spec.how == "uniform" and len(there - taken_by_now) == 0:
            assert not real


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.how)
def test_later_rows_change_nothing(spec):
    user, item, time = log(300, users=60, items=40)
    early = time < time[200]
    drawn = drawn_items(user, item, time, spec)
    assert np.array_equal(drawn[early], drawn_items(user[early], item[early], time[early], spec))
    assert (drawn[early] != NONE).sum() > 300


def test_the_seed_decides():
    user, item, time = log(300, users=60, items=40)
    first, again, other = (drawn_items(user, item, time, Negatives(per_positive=2, seed=seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert (first != other).mean() > 0.5


def test_uniform_is_uniform_and_popularity_follows_the_takings():
    # 10,000 users take item 2 (90 %) or 3 or 4 at time 1; then one user after another, at time 2, takes item 9.
    rng = np.random.default_rng(0)
    item = np.r_[rng.choice([2, 3, 4], 10_000, p=[0.9, 0.05, 0.05]), np.full(20_000, 9)]
    user = np.arange(2, 30_002)
    time = np.r_[np.full(10_000, 1), np.full(20_000, 2)]
    shares = {}
    for how in ("uniform", "popularity"):
        drawn = drawn_items(user, item, time, Negatives(per_positive=1, how=how))[10_000:, 0]
        shares[how] = [float((drawn == one).mean()) for one in (2, 3, 4)]
    assert shares["uniform"] == pytest.approx([1 / 3] * 3, abs=0.015)
    taken = [float((item[:10_000] == one).mean()) for one in (2, 3, 4)]
    assert shares["popularity"] == pytest.approx(taken, abs=0.015)


def test_nothing_was_there_before_the_first():
    drawn = drawn_items(np.array([2, 3]), np.array([2, 3]), np.array([5, 5]), Negatives(per_positive=2))
    assert (drawn == NONE).all()


def test_seen_items_may_be_drawn_when_asked_for():
    user, item, time = np.full(3, 2), np.array([2, 3, 4]), np.array([1, 2, 3])
    drawn = drawn_items(user, item, time, Negatives(per_positive=1, exclude="none"))
    assert drawn[:, 0].tolist()[0] == NONE and drawn[1, 0] == 2 and drawn[2, 0] in (2, 3)
    assert (drawn_items(user, item, time, Negatives(per_positive=1)) == NONE).all()


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.how)
def test_a_positive_draws_from_what_was_there_when_its_request_began(spec):
    # Items 2 to 9 are taken by others, one each hour; then user 99 takes 20 at hour 8, in a request of hour 3.
    item, time = np.array([2, 3, 4, 5, 6, 7, 8, 9, 20]), np.arange(9) * HOUR
    user = np.r_[np.arange(2, 10), 99]
    hashes = np.arange(100).astype(np.uint64), np.arange(21).astype(np.uint64)
    instant = np.r_[time[:-1], 3 * HOUR]
    drawn = draw_negatives(user, item, time, spec, *hashes, instant_R=instant).items_RK[-1]
    there = {3, 4} if spec.how == "in_window" else {2, 3, 4}
    assert {*drawn.tolist()} - {NONE} == there
    assert {*drawn_items(user, item, time, spec)[-1].tolist()} - {NONE} <= set(
        range(7 if spec.how == "in_window" else 2, 10)
    )
