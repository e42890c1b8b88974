"""Counters see what came strictly before, as fresh as they are declared; against a literal loop and an online state."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.contract.log import Counter
from features.errors import DataError
from features.point_in_time.counters import final, running
from tests.features.counter_state import CounterState, every_counter

HOUR = 3_600_000_000
PERIOD = {"event": 1, "hour": HOUR, "day": 24 * HOUR}
COUNTERS = every_counter()
rows = st.lists(
    st.tuples(
        st.integers(2, 5), st.integers(0, 60).map(lambda step: step * HOUR // 3), st.integers(0, 1), st.booleans()
    ),
    min_size=1,
    max_size=50,
)


def columns(log: list[tuple[Any, ...]]) -> tuple[np.ndarray, ...]:
    key, time, label, counted = (np.array(one) for one in zip(*log, strict=True))
    return key, time.astype(np.int64), label.astype(np.float32), counted.astype(bool)


def literal(log: list[tuple[Any, ...]], counter: Counter, mean: float) -> list[float]:
    """Straight from the definition, one row after the other."""
    result = []
    for key, time, _, _ in log:
        instant = time // PERIOD[counter.as_of] * PERIOD[counter.as_of]
        before = [(at, label) for other, at, label, counted in log if counted and other == key and at < instant]
        weights = [2 ** (-(instant - at) / counter.half_life) if counter.half_life else 1.0 for at, _ in before]
        count = sum(weights)
        total = sum(weight * label for weight, (_, label) in zip(weights, before, strict=True))
        times = sorted(at for at, _ in before)
        values = {
            "count": count,
            "rate": (total + counter.prior * mean) / (count + counter.prior),
            "sum": total,
            "mean": total / count if before else np.nan,
            "age": (instant - times[0]) / HOUR if before else np.nan,
            "since": (instant - times[-1]) / HOUR if before else np.nan,
        }
        result.append(values[counter.value])
    return result


def test_by_hand() -> None:
    key, time, label = np.array([7, 7, 7, 8, 7]), np.array([10, 10, 20, 20, 30]), np.array([1, 0, 1, 1, 0])
    count = Counter(of="item", value="count")
    rate = Counter(of="item", value="rate", prior=2)
    assert running(key, time, label, count, 0.25).tolist() == [0, 0, 2, 0, 3]
    # (1 + 2 * 0.25) / (2 + 2) and (2 + 2 * 0.25) / (3 + 2).
    assert running(key, time, label, rate, 0.25).tolist() == [0.25, 0.25, 0.375, 0.25, 0.5]
    assert final(key, time, label, count, 0.25, keys=10, newest=30).tolist() == [0, 0, 0, 0, 0, 0, 0, 4, 1, 0]


def test_fading_by_hand() -> None:
    counter = Counter(of="item", value="count", half_life="1h")
    key, time = np.full(3, 4), np.array([0, HOUR, 3 * HOUR])
    # At one hour the first weighs a half; at three hours it weighs an eighth and the second a quarter.
    assert running(key, time, np.ones(3), counter, 0.5).tolist() == [0, 0.5, 0.375]


@settings(max_examples=150, deadline=None)
@given(rows, st.sampled_from(COUNTERS))
def test_equals_the_literal_loop(log: list[tuple[Any, ...]], counter: Counter) -> None:
    key, time, label, counted = columns(log)
    found = running(key, time, label, counter, 0.3, counted)
    np.testing.assert_allclose(found, literal(log, counter, 0.3), rtol=1e-9, atol=1e-12)


@settings(max_examples=100, deadline=None)
@given(rows, rows, st.sampled_from(COUNTERS), st.integers(0, 60))
def test_what_happens_at_or_after_a_row_never_reaches_it(
    log: list[tuple[Any, ...]], later: list[tuple[Any, ...]], counter: Counter, cut: int
) -> None:
    instant = cut * HOUR // 3
    early = [row for row in log if row[1] <= instant]
    changed = [(key, time, 1 - label if time == instant else label, counted) for key, time, label, counted in early]
    added = [(key, instant + time, label, counted) for key, time, label, counted in later]
    if early:
        first = running(*columns(early)[:3], counter, 0.3, columns(early)[3])
        both = columns(changed + added)
        second = running(*both[:3], counter, 0.3, both[3])[: len(early)]
        np.testing.assert_allclose(first, second, rtol=1e-12, atol=0)


@settings(max_examples=100, deadline=None)
@given(rows, st.sampled_from(COUNTERS))
def test_kept_up_event_by_event_it_is_the_same(log: list[tuple[Any, ...]], counter: Counter) -> None:
    log = sorted(log, key=lambda row: row[1])
    key, time, label, counted = columns(log)
    offline = running(key, time, label, counter, 0.3, counted)
    state, online = CounterState(counter, 0.3), []
    for r in range(len(log)):
        # A row is asked for before any event of its own instant is told of.
        for earlier in range(len(log)):
            if counted[earlier] and time[earlier] == time[r - 1] and r and time[r] != time[r - 1]:
                state.update(int(key[earlier]), int(time[earlier]), float(label[earlier]))
        online.append(state.value(int(key[r]), int(time[r])))
    np.testing.assert_allclose(offline, online, rtol=1e-9, atol=1e-12)
    # As stored: sums of whole numbers are exact, faded ones may fall on either side of a rounding.
    stored, served = np.nan_to_num(offline).astype(np.float32), np.nan_to_num(np.array(online, np.float32))
    np.testing.assert_array_max_ulp(stored, served, maxulp=1 if counter.half_life else 0)


@settings(max_examples=100, deadline=None)
@given(rows, st.sampled_from(COUNTERS))
def test_the_end_of_the_log_is_all_of_it(log: list[tuple[Any, ...]], counter: Counter) -> None:
    key, time, label, counted = columns(log)
    newest = int(time.max())
    found = final(key[counted], time[counted], label[counted], counter, 0.3, keys=7, newest=newest)
    # One more row of each key, a microsecond later, that does not count itself.
    after = [*log, *((one, newest + 1, 0, False) for one in range(7))]
    at_once = counter.model_copy(update={"as_of": "event"})
    np.testing.assert_allclose(found, literal(after, at_once, 0.3)[-7:], rtol=1e-9, atol=1e-12)


def test_a_key_without_rows_has_the_mean() -> None:
    nothing = np.zeros(0, np.int64)
    for counter in COUNTERS:
        fresh = {"count": 0.0, "sum": 0.0, "rate": 0.3}.get(counter.value, np.nan)
        found = final(nothing, nothing, nothing, counter, 0.3, keys=3, newest=5)
        np.testing.assert_array_equal([*found, CounterState(counter, 0.3).value("new", 5)], [fresh] * 4)


def test_a_long_log_neither_overflows_nor_forgets() -> None:
    """Ten years at a half-life of a minute: 5 million half-lives."""
    counter = Counter(of="item", value="count", half_life="1m")
    time = np.sort(np.random.default_rng(0).integers(0, 10 * 365 * 24 * HOUR, 2_000))
    time[-2:] = time[-3] + np.array([60, 120]) * 1_000_000
    found = running(np.full(2_000, 3), time, np.ones(2_000), counter, 0.5)
    assert np.isfinite(found).all() and (found >= 0).all()
    assert found[-1] == pytest.approx(0.75, abs=1e-6)


def test_the_order_of_rows_means_nothing() -> None:
    rng = np.random.default_rng(1)
    key, time, label = rng.integers(2, 9, 500), rng.integers(0, 40, 500) * HOUR, rng.integers(0, 2, 500)
    order = rng.permutation(500)
    for counter in COUNTERS:
        straight = running(key, time, label, counter, 0.4)
        np.testing.assert_allclose(running(key[order], time[order], label[order], counter, 0.4), straight[order], 1e-12)


@pytest.mark.parametrize("half_life", [None, "2h"])
def test_a_row_without_a_label_is_shown_but_rated_by_nobody(half_life: str | None) -> None:
    key, time = np.array([3, 3, 3, 8, 8]), np.array([10, 20, 30, 10, 40])
    label = np.array([1.0, np.nan, 0.0, 1.0, 0.0])
    count = Counter(of="item", value="count", half_life=half_life)
    rate = Counter(of="item", value="rate", prior=2, half_life=half_life)
    # The first row of item 3 alone, (1 + 2 * 0.25) / (1 + 2); keys after it are as if the unknown label were not there.
    assert running(key, time, label, rate, 0.25) == pytest.approx([0.25, 0.5, 0.5, 0.25, 0.5], rel=1e-6)
    assert running(key, time, label, count, 0.25) == pytest.approx([0, 1, 2, 0, 1], rel=1e-6)
    # (1 + 0 + 2 * 0.25) / (2 + 2) for both.
    assert final(key, time, label, rate, 0.25, keys=9, newest=40)[[3, 8]] == pytest.approx([0.375] * 2, rel=1e-6)
    assert final(key, time, label, count, 0.25, keys=9, newest=40)[[3, 8]] == pytest.approx([3, 2], rel=1e-6)


def test_the_online_state_takes_no_unknown_label_into_a_rate() -> None:
    rate = CounterState(Counter(of="item", value="rate", prior=2), 0.25)
    count = CounterState(Counter(of="item", value="count"), 0.25)
    for state in (rate, count):
        state.update(3, 10, 1)
        state.update(3, 20, float("nan"))
    assert rate.value(3, 30) == 0.5 and count.value(3, 30) == 2


def test_rows_of_one_request_ask_at_its_instant_and_count_at_their_own() -> None:
    key, time, label = np.array([3, 3, 3, 3]), np.array([10, 20, 21, 22]), np.array([1.0, 1.0, 0.0, 0.0])
    instant = np.array([10, 20, 20, 22])
    count = Counter(of="item", value="count")
    # The third row belongs to the request that began at 20; the fourth sees it at its own time, 21.
    assert running(key, time, label, count, 0.5, instant_R=instant).tolist() == [0, 1, 1, 3]


def test_numbers_and_hours_by_hand() -> None:
    key, time = np.array([3, 3, 3, 8, 3]), np.array([0, HOUR, HOUR, 3 * HOUR, 4 * HOUR])
    number = np.array([4.0, np.nan, -1.0, 5.0, 2.0])
    by_value = {
        "sum": [0, 4, 4, 0, 3],
        "mean": [np.nan, 4, 4, np.nan, 1.5],
        "age": [np.nan, 1, 1, np.nan, 4],
        # The row without a number was shown all the same.
        "since": [np.nan, 1, 1, np.nan, 3],
    }
    for value, wanted in by_value.items():
        counter = Counter(of="item", value=value, number="x" if value in ("sum", "mean") else None)
        np.testing.assert_array_equal(running(key, time, number, counter, 0.5), wanted, err_msg=value)
    # At four hours the first weighs 1/16 and the third 1/8.
    fading = Counter(of="item", value="mean", number="x", half_life="1h")
    assert running(key, time, number, fading, 0.5)[4] == pytest.approx((4 / 16 - 1 / 8) / (1 / 16 + 1 / 8))


def test_a_mean_outlives_its_weights() -> None:
    """After 5,000 half-lives nothing weighs anything, and the mean is what it was."""
    counter = Counter(of="item", value="mean", number="x", half_life="1m")
    time = np.array([0, 0, 5_000 * 60_000_000])
    assert running(np.full(3, 2), time, np.array([1.0, 2.0, 9.0]), counter, 0.5)[2] == 1.5


@pytest.mark.parametrize("half_life", [None, "1000d"])
@pytest.mark.parametrize("huge", [1e20, 3e15])
def test_a_huge_number_of_one_key_leaves_the_sums_of_others_as_they_are(huge: float, half_life: str | None) -> None:
    key, time, amount = np.array([0, 0, 1, 1, 1]), np.array([1, 2, 1, 2, 3]), np.array([huge, 1, 0.25, 2, 3])
    counter = Counter(of="item", value="sum", number="spent", half_life=half_life)
    assert running(key, time, amount, counter, 0.0)[2:] == pytest.approx([0, 0.25, 2.25])


@pytest.mark.parametrize("huge", [1e308, 3e38, -3e38])
def test_numbers_beyond_what_a_sum_can_hold_are_told(huge: float) -> None:
    """Served values are of 32 bits: one beyond them would be missing in requests and known in training."""
    key, time, amount = np.array([0, 0, 0]), np.array([1, 2, 3]), np.array([huge, huge, 1.0])
    with pytest.raises(DataError, match="'spent' add up to more than a number can hold"):
        running(key, time, amount, Counter(of="item", value="sum", number="spent"), 0.0)
