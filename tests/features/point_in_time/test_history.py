"""Histories end strictly before the row's own time: by hand, and against the literal definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.point_in_time.history import gap_seconds, history_spans, without_repeats


def literal(rows: list[tuple[int, int, bool]], max_len: int) -> list[list[int]]:
    """For each row, the places of its history in the array of events, straight from the definition."""
    events = [(user, time) for user, time, is_event in rows if is_event]
    return [
        [place for place, (other, before) in enumerate(events) if other == user and before < time][-max_len:]
        for user, time, _ in rows
    ]


def spans(rows: list[tuple[int, int, bool]], max_len: int) -> tuple[Any, Any]:
    user, time, is_event = (np.array(column) for column in zip(*rows, strict=True))
    return history_spans(user, time, is_event.astype(bool), max_len)


def test_by_hand_with_ties() -> None:
    #         user time           events before it     newest two
    rows = [
        (7, 10, True),  # event 0   none
        (7, 10, True),  # event 1   none: the tie is not seen
        (7, 20, True),  # event 2   0 1                  0 1
        (7, 30, True),  # event 3   0 1 2                1 2
        (7, 30, True),  # event 4   0 1 2                1 2
        (9, 5, True),  #  event 5   none: another user
        (9, 30, True),  # event 6   5                    5
    ]
    end, length = spans(rows, max_len=2)
    assert end.tolist() == [0, 0, 2, 3, 3, 5, 6]
    assert length.tolist() == [0, 0, 2, 2, 2, 0, 1]
    assert (end.dtype, length.dtype) == (np.int64, np.int32)


def test_by_hand_only_events_are_counted() -> None:
    rows = [(1, 1, False), (1, 2, True), (1, 2, False), (1, 3, False), (2, 3, True), (2, 4, False)]
    end, length = spans(rows, max_len=5)
    assert end.tolist() == [0, 0, 0, 1, 1, 2]
    assert length.tolist() == [0, 0, 0, 1, 0, 1]


def test_no_rows() -> None:
    empty = np.empty(0, np.int64)
    end, length = history_spans(empty, empty, empty.astype(bool), 3)
    assert len(end) == len(length) == 0
    assert (end.dtype, length.dtype) == (np.int64, np.int32)


row = st.tuples(st.integers(2, 5), st.integers(0, 6), st.booleans())


@given(st.lists(row, min_size=1, max_size=60), st.integers(1, 8))
def test_equals_the_literal_definition(unsorted: list[tuple[int, int, bool]], max_len: int) -> None:
    rows = sorted(unsorted, key=lambda r: r[:2])
    end, length = spans(rows, max_len)
    assert [list(range(e - n, e)) for e, n in zip(end, length, strict=True)] == literal(rows, max_len)


@given(st.lists(row, min_size=1, max_size=40), st.lists(row, max_size=20), st.integers(1, 8))
def test_later_events_change_no_earlier_history(
    unsorted: list[tuple[int, int, bool]], later: list[tuple[int, int, bool]], max_len: int
) -> None:
    """Appended at or after the last instant, by old and new users alike: each old row sees the same times."""
    last = max(time for _, time, _ in unsorted)
    before = sorted(unsorted, key=lambda r: r[:2])
    appended = [(user, last + time, is_event) for user, time, is_event in later]
    after = sorted([(*r, True) for r in before] + [(*r, False) for r in appended], key=lambda r: r[:2])

    def seen(rows: list[tuple[int, int, bool]]) -> list[list[int]]:
        end, length = spans(rows, max_len)
        times = [time for _, time, is_event in rows if is_event]
        return [times[e - n : e] for e, n in zip(end, length, strict=True)]

    old = [times for times, r in zip(seen([r[:3] for r in after]), after, strict=True) if r[3]]
    assert old == seen(before)


@pytest.mark.parametrize("max_len", [1, 3, 100])
def test_length_is_never_above_its_limit(max_len: int) -> None:
    _, length = spans([(1, time, True) for time in range(20)], max_len)
    assert length.tolist() == [min(time, max_len) for time in range(20)]


def literal_limited(
    rows: list[tuple[int, int, bool]], max_len: int, within: int | None, gap: int | None
) -> list[list[int]]:
    """As `literal`, then without what is too old or belongs to an earlier session."""
    times = [time for _, time, is_event in rows if is_event]
    result = []
    for (_, time, _), places in zip(rows, literal(rows, max_len=10**6), strict=True):
        kept: list[int] = []
        newest = time
        for place in reversed(places):
            if gap is not None and newest - times[place] > gap:
                break
            newest = times[place]
            if within is None or time - times[place] <= within:
                kept.insert(0, place)
        result.append(kept[-max_len:])
    return result


@given(
    st.lists(row, min_size=1, max_size=40).map(sorted),
    st.integers(1, 6),
    st.none() | st.integers(1, 4),
    st.none() | st.integers(1, 3),
)
def test_age_and_session_equal_the_literal_definition(
    rows: list[tuple[int, int, bool]], max_len: int, within: int | None, gap: int | None
) -> None:
    user, time, is_event = (np.array(column) for column in zip(*rows, strict=True))
    end, length = history_spans(user, time, is_event.astype(bool), max_len, within, gap)
    found = [list(range(e - n, e)) for e, n in zip(end.tolist(), length.tolist(), strict=True)]
    assert found == literal_limited(rows, max_len, within, gap)


def test_rows_of_one_request_know_what_its_first_row_knew() -> None:
    #         user time instant   events before the instant
    rows = [
        (7, 10, 10),  # event 0   none
        (7, 20, 20),  # event 1   0
        (7, 21, 20),  # event 2   0: the request began at 20
        (7, 22, 22),  # event 3   0 1 2: of another request, which sees events at their own times
        (7, 23, 20),  # event 4   0
        (9, 21, 5),  #  event 5   none: another user
    ]
    user, time, instant = (np.array(column) for column in zip(*rows, strict=True))
    end, length = history_spans(user, time, np.ones(6, bool), 9, instant_R=instant)
    assert end.tolist() == [0, 1, 1, 3, 1, 5]
    assert length.tolist() == [0, 1, 1, 3, 1, 0]


def test_a_delay_by_hand() -> None:
    time = np.array([0, 10, 14, 15, 20])
    user, is_event = np.full(5, 3), np.array([True, True, False, False, True])
    # Delay 5: what is strictly before time - 5. The event at 10 is not seen at 15, but at 20.
    end, length = history_spans(user, time, is_event, 9, delay=5)
    assert (end.tolist(), length.tolist()) == ([0, 1, 1, 1, 2], [0, 1, 1, 1, 2])
    # At most one: the newest that is visible, not the newest.
    end, length = history_spans(user, time, is_event, 1, delay=5)
    assert (end.tolist(), length.tolist()) == ([0, 1, 1, 1, 2], [0, 1, 1, 1, 1])


@given(
    st.lists(st.tuples(row, st.integers(0, 3)), min_size=1, max_size=40).map(lambda rows: sorted(rows)),
    st.integers(1, 6),
    st.integers(0, 3),
    st.none() | st.integers(4, 6),
    st.none() | st.integers(4, 5),
)
def test_instants_and_delay_equal_the_literal_definition(
    rows: list[tuple[tuple[int, int, bool], int]], max_len: int, delay: int, within: int | None, gap: int | None
) -> None:
    """A row looks from its instant, at most 3 before its time; it sees what was more than the delay before that."""
    user, time, is_event = (np.array(column) for column in zip(*(r for r, _ in rows), strict=True))
    instant = time - np.array([early for _, early in rows])
    events = [(u, t) for (u, t, event), _ in rows if event]
    wanted = []
    for u, now in zip(user, instant, strict=True):
        seen = [place for place, (other, at) in enumerate(events) if other == u and at < now - delay]
        kept: list[int] = []
        newest = now
        for place in reversed(seen):
            if gap is not None and newest - events[place][1] > gap:
                break
            newest = events[place][1]
            if within is None or now - newest <= within:
                kept.insert(0, place)
        wanted.append(kept[-max_len:])
    end, length = history_spans(user, time, is_event.astype(bool), max_len, within, gap, instant, delay)
    assert [list(range(e - n, e)) for e, n in zip(end.tolist(), length.tolist(), strict=True)] == wanted


def test_a_session_by_hand() -> None:
    #         user time           of events of the last 5 without a pause above 2
    rows = [
        (1, 0, True),  #  event 0  none before it
        (1, 3, True),  #  event 1  none: a pause of 3
        (1, 5, True),  #  event 2  1
        (1, 7, False),  #          1 2
        (1, 9, False),  #          none: the last event is 4 ago
        (2, 8, True),  #  event 3  none: the events before are another user's
        (2, 9, True),  #  event 4  3
        (2, 11, True),  # event 5  3 4
        (2, 13, True),  # event 6  3 4 5
        (2, 14, False),  #         4 5 6: event 3 is older than 5
    ]
    user, time, is_event = (np.array(column) for column in zip(*rows, strict=True))
    end, length = history_spans(user, time, is_event, 10, within=5, session_gap=2)
    assert end.tolist() == [0, 1, 2, 3, 3, 3, 4, 5, 6, 7]
    assert length.tolist() == [0, 0, 1, 2, 0, 0, 1, 2, 3, 3]
    # Without an age, the session alone: the last row sees event 3 too.
    assert history_spans(user, time, is_event, 10, session_gap=2)[1].tolist() == [0, 0, 1, 2, 0, 0, 1, 2, 3, 4]
    # Without a session, the age alone: the third row sees event 0, which is just 5 old.
    assert history_spans(user, time, is_event, 10, within=5)[1].tolist() == [0, 1, 2, 2, 1, 0, 1, 2, 3, 3]


def test_events_too_old_and_not_yet_known_leave_an_empty_history() -> None:
    """Known 3 after they happen and read for 2: nothing is both, and no length is below zero."""
    user, time, is_event = np.array([1, 1, 1]), np.array([0, 7, 10]), np.array([True, True, False])
    end, length = history_spans(user, time, is_event, 10, within=2, delay=3)
    # At 10 the event of 0 is known and too old, and that of 7 is too old and not known yet.
    assert (end.tolist(), length.tolist()) == ([0, 1, 1], [0, 0, 0])


def test_rows_without_any_event_have_no_session() -> None:
    user, time = np.array([1, 1]), np.array([0, 1])
    end, length = history_spans(user, time, np.zeros(2, bool), 10, within=5, session_gap=2)
    assert end.tolist() == length.tolist() == [0, 0]


def test_repeats_by_hand() -> None:
    user = np.array([1, 1, 1, 1, 1, 2])
    item = np.array([5, 5, 6, 5, 5, 5])
    event = np.array([True, True, True, False, True, True])
    found = {how: without_repeats(user, item, event, how) for how in ("keep", "consecutive", "first")}
    assert {flags.dtype for flags in found.values()} == {np.dtype(bool)}
    kept = {how: flags.tolist() for how, flags in found.items()}
    assert kept["keep"] == event.tolist()
    assert kept["consecutive"] == [True, False, True, False, True, True]
    assert kept["first"] == [True, False, True, False, False, True]


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3), st.booleans()), max_size=30), st.integers(0, 30))
def test_what_is_a_repeat_does_not_depend_on_later_rows(rows: list[tuple[int, int, bool]], cut: int) -> None:
    rows = sorted(rows, key=lambda one: one[0])
    user, item, event = (np.array([one[i] for one in rows], int) for i in range(3))
    for how in ("consecutive", "first"):
        whole = without_repeats(user, item, event.astype(bool), how)
        for one in np.unique(user):
            mine = np.flatnonzero(user == one)[:cut]
            assert (without_repeats(user[mine], item[mine], event[mine].astype(bool), how) == whole[mine]).all()


def test_gaps_by_hand() -> None:
    user, event = np.array([1, 1, 1, 2, 2]), np.array([True, False, True, True, True])
    time = np.array([0, 1, 5, 5, 65]) * 1_000_000
    gaps = gap_seconds(user, time, event)
    assert np.isnan(gaps[[0, 1, 3]]).all()
    assert gaps[[2, 4]].tolist() == [5.0, 60.0]
