"""Point-in-time histories: which events count, and where each row's history ends, by the strictly-before rule."""

from __future__ import annotations

from typing import Literal

import numpy as np


def history_spans(
    user_R: np.ndarray,
    time_R: np.ndarray,
    is_event_R: np.ndarray,
    max_len: int,
    within: int | None = None,
    session_gap: int | None = None,
    instant_R: np.ndarray | None = None,
    delay: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """End and length of each row's history in the flat array of events.

    Rows are sorted by user, then time; the events are those rows for which `is_event_R` holds, in the same
    order. A row's history is its user's events strictly before its own time: rows of one user and one
    instant all end where that instant begins, so none of them sees another. A row of a request knows no more
    than the request's earliest row; with a delay, what was strictly before that less the delay.

    Args:
        user_R: user rows, int [R].
        time_R: times (µs), int64 [R].
        is_event_R: bool [R].
        max_len: longest history; the newest events are kept.
        within: oldest age of an event (µs) at the row's instant.
        session_gap: a longer pause (µs) between events, or between the last one and the row's instant, ends a
            session; the history holds the running session alone.
        instant_R: as of when each row knows the past, int64 [R], at or before its time; default its time.
        delay: how long (µs) it takes until an event is known.

    Returns:
        end, int64 [R]: events of the array before the row's history ends;
        length, int32 [R]: `events[end - length : end]` is the history, oldest first.
    """
    rows = len(user_R)
    if not rows:
        return np.empty(0, np.int64), np.empty(0, np.int32)
    place = np.arange(rows)
    new_user = _differs(user_R)
    new_instant = new_user | _differs(time_R)
    instant_start = np.maximum.accumulate(np.where(new_instant, place, 0))
    user_start = np.maximum.accumulate(np.where(new_user, place, 0))
    events_before = np.zeros(rows + 1, np.int64)
    np.cumsum(is_event_R, out=events_before[1:])
    end_R = events_before[instant_start]
    start_R = events_before[user_start]
    looks_back = instant_R is not None or bool(delay)
    if looks_back or within is not None or session_gap is not None:
        user_E, time_E = user_R[is_event_R], time_R[is_event_R]
    instant_R = time_R if instant_R is None else instant_R
    if looks_back:
        known_R = instant_R - delay
        early_R = np.flatnonzero(known_R < time_R)
        if len(early_R):
            end_R[early_R] = _first_not_older(user_E, time_E, user_R[early_R], known_R[early_R])
    if within is not None:
        start_R = np.maximum(start_R, _first_not_older(user_E, time_E, user_R, instant_R - within))
    if session_gap is not None:
        start_R = np.maximum(start_R, _session_start(user_E, time_E, instant_R, end_R, session_gap))
    length_R = np.minimum(np.maximum(end_R - start_R, 0), max_len).astype(np.int32)
    return end_R, length_R


def without_repeats(
    user_R: np.ndarray, item_R: np.ndarray, is_event_R: np.ndarray, repeats: Literal["keep", "consecutive", "first"]
) -> np.ndarray:
    """Which of the events stay events, bool [R]; rows are sorted by user, then time.

    `consecutive` drops an event whose user's event before it was the same item, `first` keeps only the user's first
    event of each item. Both look back alone, so that a history never depends on what came later.
    """
    if repeats == "keep":
        return is_event_R
    kept_R = np.zeros(len(is_event_R), bool)
    place_E = np.flatnonzero(is_event_R)
    user_E, item_E = user_R[place_E], item_R[place_E]
    if repeats == "consecutive":
        new_E = _differs(user_E) | _differs(item_E)
    else:
        order = np.lexsort((np.arange(len(place_E)), item_E, user_E))
        new_E = np.zeros(len(place_E), bool)
        new_E[order[_differs(user_E[order]) | _differs(item_E[order])]] = True
    kept_R[place_E[new_E]] = True
    return kept_R


def gap_seconds(user_R: np.ndarray, time_R: np.ndarray, is_event_R: np.ndarray) -> np.ndarray:
    """Seconds between each event and its user's event before it, float64 [R]; NaN for a first one and for no event."""
    gap_R = np.full(len(user_R), np.nan)
    place_E = np.flatnonzero(is_event_R)
    same_user = user_R[place_E[1:]] == user_R[place_E[:-1]]
    seconds = (time_R[place_E[1:]] - time_R[place_E[:-1]]) / 1e6
    gap_R[place_E[1:][same_user]] = seconds[same_user]
    return gap_R


def _differs(value_R: np.ndarray) -> np.ndarray:
    """Where a value is not the one before it, bool [R]; true at the first."""
    found_R = np.ones(len(value_R), bool)
    np.not_equal(value_R[1:], value_R[:-1], out=found_R[1:])
    return found_R


def _first_not_older(user_E: np.ndarray, time_E: np.ndarray, user_R: np.ndarray, oldest_R: np.ndarray) -> np.ndarray:
    """Place of the first event of the row's user that is not older than `oldest_R`; events are sorted by user, time.

    One search over all users: (user, time) pairs become ranks in the merged order.
    """
    order = np.lexsort(
        (
            np.r_[np.ones(len(user_E), np.int8), np.zeros(len(user_R), np.int8)],
            np.r_[time_E, oldest_R],
            np.r_[user_E, user_R],
        )
    )
    is_event = order < len(user_E)
    events_before = np.cumsum(is_event)
    result_R = np.empty(len(user_R), np.int64)
    result_R[order[~is_event] - len(user_E)] = events_before[~is_event]
    return result_R


def _session_start(
    user_E: np.ndarray, time_E: np.ndarray, instant_R: np.ndarray, end_R: np.ndarray, gap: int
) -> np.ndarray:
    """Where the session begins that runs at each row: its newest event's, or `end_R` when that is too long ago."""
    if not len(time_E):
        return end_R
    new_E = _differs(user_E)
    new_E[1:] |= time_E[1:] - time_E[:-1] > gap
    start_E = np.maximum.accumulate(np.where(new_E, np.arange(len(time_E)), 0))
    last_R = np.maximum(end_R - 1, 0)
    running_R = (end_R > 0) & (instant_R - time_E[last_R] <= gap)
    return np.where(running_R, start_E[last_R], end_R)
