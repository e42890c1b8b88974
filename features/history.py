"""Point-in-time histories: where each row's history ends, by the strictly-before rule."""

from __future__ import annotations

import numpy as np


def history_spans(
    user_R: np.ndarray, time_R: np.ndarray, is_event_R: np.ndarray, max_len: int
) -> tuple[np.ndarray, np.ndarray]:
    """End and length of each row's history in the flat array of events.

    Rows are sorted by user, then time; the events are those rows for which `is_event_R` holds, in the same
    order. A row's history is its user's events strictly before its own time: rows of one user and one
    instant all end where that instant begins, so none of them sees another.

    Args:
        user_R: user rows, int [R].
        time_R: times, int64 [R].
        is_event_R: bool [R].
        max_len: longest history; the newest events are kept.

    Returns:
        end, int64 [R]: events of the array before the row's history ends;
        length, int32 [R]: `events[end - length : end]` is the history, oldest first.
    """
    rows = len(user_R)
    if not rows:
        return np.empty(0, np.int64), np.empty(0, np.int32)
    place = np.arange(rows)
    new_user = np.r_[True, user_R[1:] != user_R[:-1]]
    new_instant = new_user | np.r_[True, time_R[1:] != time_R[:-1]]
    instant_start = np.maximum.accumulate(np.where(new_instant, place, 0))
    user_start = np.maximum.accumulate(np.where(new_user, place, 0))
    events_before = np.concatenate([[0], np.cumsum(is_event_R, dtype=np.int64)])
    end_R = events_before[instant_start]
    length_R = np.minimum(end_R - events_before[user_start], max_len).astype(np.int32)
    return end_R, length_R
