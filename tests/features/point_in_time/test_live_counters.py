"""Counters kept up by events are those of a log that holds the events: against the whole log, and against plain Python.

The log is cut at an instant: the state there, and the events after it, in place of the log.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.contract.log import Counter
from features.encoding.snapshot import Snapshot
from features.point_in_time.counters import running, state
from features.point_in_time.live_counters import LiveCounter
from tests.features.counter_state import CounterState as InPython
from tests.features.counter_state import every_counter

HOUR = 3_600_000_000
MEAN, KEYS = 0.3, 7
COUNTERS = every_counter()
START = 470_000 * HOUR  # of a log of our time, on a full hour: some events are where an hour begins
rows = st.lists(
    st.tuples(st.integers(2, 5), st.integers(0, 90), st.sampled_from([0.0, 1.0, np.nan])), min_size=1, max_size=40
)


def columns(log: list[tuple[Any, ...]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    key = np.array([row[0] for row in log], np.int64)
    return key, START + np.array([row[1] for row in log], np.int64) * (HOUR // 3), np.array([row[2] for row in log])


def at_the_cut(log: tuple[np.ndarray, ...], counter: Counter) -> LiveCounter:
    key, time, label = log
    newest = int(time.max()) if len(time) else START - 1
    return LiveCounter(counter, MEAN, state(key, time, label, counter, KEYS, newest))


def whole(log: tuple[np.ndarray, ...], counter: Counter, instant: int) -> np.ndarray:
    """`running` for one more row of each key at the instant, which does not count itself."""
    key, time, label = log
    asked = [np.r_[key, np.arange(KEYS)], np.r_[time, np.full(KEYS, instant)], np.r_[label, np.zeros(KEYS)]]
    counted = np.arange(len(key) + KEYS) < len(key)
    return running(*asked, counter, MEAN, counted)[-KEYS:]


def in_python(log: tuple[np.ndarray, ...], counter: Counter, instant: int) -> list[float]:
    counted = InPython(counter, MEAN)
    for key, time, label in zip(*(values.tolist() for values in log), strict=True):
        counted.update(key, time, label)
    return [counted.value(key, instant) for key in range(KEYS)]


@settings(max_examples=150, deadline=None)
@given(rows, st.integers(0, 90), st.sampled_from(COUNTERS), st.lists(st.integers(0, 160), min_size=1, max_size=4))
def test_state_and_later_events_are_the_whole_log(
    log: list[tuple[Any, ...]], cut: int, counter: Counter, later: list[int]
) -> None:
    key, time, label = every = columns(log)
    before = time <= START + cut * (HOUR // 3)
    live = at_the_cut((key[before], time[before], label[before]), counter)
    live.add(key[~before], time[~before], label[~before])
    first = int(time.max(where=before, initial=START - 1)) + 1
    for instant in sorted(max(first, START + step * (HOUR // 3)) for step in later):
        found = live.values(instant)
        np.testing.assert_allclose(found, whole(every, counter, instant), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(found, in_python(every, counter, instant), rtol=1e-9, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(rows, st.randoms(use_true_random=False), st.sampled_from(COUNTERS), st.integers(1, 5))
def test_the_order_of_events_means_nothing_once_they_are_there(
    log: list[tuple[Any, ...]], random: Any, counter: Counter, pieces: int
) -> None:
    """Also of those that come after a value was asked for that they should have been in."""
    shuffled = list(log)
    random.shuffle(shuffled)
    live = at_the_cut(columns([]), counter)
    for piece in range(pieces):
        live.add(*columns(shuffled[piece::pieces]))
        live.values(START + 100 * HOUR + piece)
    instant = START + 130 * HOUR
    expected = whole(columns(log), counter, instant)
    np.testing.assert_allclose(live.values(instant), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("counter", COUNTERS, ids=str)
def test_an_event_added_twice_counts_twice_as_in_a_log_that_holds_it_twice(counter: Counter) -> None:
    log = columns([(3, 0, 1.0), (3, 4, 0.0)])
    live = at_the_cut(log, counter)
    once = columns([(3, 5, 1.0)])
    live.add(*once)
    live.add(*once)
    twice = tuple(np.r_[values, added, added] for values, added in zip(log, once, strict=True))
    instant = START + 60 * HOUR
    np.testing.assert_allclose(live.values(instant), whole(twice, counter, instant), rtol=1e-9)


def test_by_hand() -> None:
    rate = Counter(of="item", value="rate", prior=2, as_of="hour")
    key, time, label = np.array([4, 4]), np.array([HOUR // 2, 3 * HOUR // 2]), np.array([1.0, 1.0])
    live = LiveCounter(rate, 0.25, state(key, time, label, rate, KEYS, int(time.max())))
    # The second hour runs: its event is not known yet. (1 + 2 * 0.25) / (1 + 2).
    assert live.values(7 * HOUR // 4)[4] == pytest.approx(0.5)
    live.add(np.array([4]), np.array([9 * HOUR // 5]), np.array([0.0]))
    assert live.values(2 * HOUR - 1)[4] == pytest.approx(0.5)
    # (2 + 0.5) / (3 + 2), and the mean of a key that nothing is known of.
    assert live.values(2 * HOUR)[[4, 5]] == pytest.approx([0.5, 0.25])
    faded = Counter(of="item", value="count", half_life="1h")
    live = LiveCounter(faded, 0.25, state(key, key * 0, label, faded, KEYS, 0))
    live.add(np.array([4]), np.array([HOUR]), np.array([np.nan]))
    # Two events of two hours and one of an hour: 2 / 4 + 1 / 2.
    assert live.values(2 * HOUR)[4] == 1.0


def test_the_state_it_begins_with_is_not_changed() -> None:
    counter = COUNTERS[0]
    begun = state(*columns([(3, 0, 1.0), (4, 1, 1.0)]), counter, KEYS, START + HOUR)
    before = begun.count.copy(), begun.time.copy()
    live = LiveCounter(counter, MEAN, begun)
    live.add(*columns([(3, 9, 1.0)]))
    assert live.values(START + 50 * HOUR)[3] == 2
    live.move(np.arange(KEYS) + 1, KEYS + 1)
    np.testing.assert_array_equal(begun.count, before[0])
    np.testing.assert_array_equal(begun.time, before[1])


def test_a_million_seconds_of_asking_lose_nothing() -> None:
    """Sums are faded from the key's newest event, never step by step."""
    counter = Counter(of="item", value="count", half_life="3d")
    live = at_the_cut(columns([(3, 0, 1.0)]), counter)
    for second in range(1, 2_000):
        live.values(START + second * 500_000_000)
    instant = START + 1_000_000_000_000
    assert live.values(instant)[3] == pytest.approx(2 ** (-1_000_000 / (3 * 86_400)), rel=1e-14)


def test_states_come_back_as_they_were_saved(tmp_path: Any) -> None:
    states = {f"n/{i}": state(*columns([(3, 0, 1.0), (5, 2, 0.0)]), c, KEYS, START) for i, c in enumerate(COUNTERS)}
    kept = Snapshot({"n/0": np.zeros(KEYS, np.float32)}, {}, states, mean=0.1, newest=START)
    kept.save(tmp_path)
    found = Snapshot.load(tmp_path)
    assert (found.mean, found.newest, list(found.states)) == (0.1, START, list(states))
    for name, one in states.items():
        for part, values in vars(one).items():
            np.testing.assert_array_equal(getattr(found.states[name], part), values, err_msg=f"{name} {part}")


@settings(max_examples=60, deadline=None)
@given(rows, st.integers(0, 90), st.sampled_from(COUNTERS), st.randoms(use_true_random=False))
def test_keys_may_get_other_rows_at_any_time(
    log: list[tuple[Any, ...]], cut: int, counter: Counter, random: Any
) -> None:
    key, time, label = every = columns(log)
    before = time <= START + cut * (HOUR // 3)
    live = at_the_cut((key[before], time[before], label[before]), counter)
    live.add(key[~before], time[~before], label[~before])
    place = np.array(random.sample(range(KEYS + 3), KEYS))
    live.move(place, KEYS + 3)
    instant = START + 160 * HOUR
    np.testing.assert_allclose(live.values(instant)[place], whole(every, counter, instant), rtol=1e-9, atol=1e-12)
    others = np.setdiff1d(np.arange(KEYS + 3), place)
    np.testing.assert_allclose(live.values(instant)[others], whole(columns([]), counter, instant)[:3], rtol=1e-9)
