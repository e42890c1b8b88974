"""Rows to score as batches of the scoring graph: requests of similar size stand together, so little is padded.

Shapes: R rows, Q requests, P pieces of requests, U pieces of a batch, N candidates, S history positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ctr.serving.scoring.scorer import Scorer
from features.requests.request_rows import RequestRows

MOST_CANDIDATES = 256  # of one request in a batch; longer lists are cut into pieces
MOST_CELLS = 1 << 16  # history positions, or candidates times history positions, of a batch


@dataclass(frozen=True)
class _Pieces:
    """Requests of at most `MOST_CANDIDATES` candidates.

    Args:
        request_P: int64.
        first_P, count_P: rows `row_R[first : first + count]` are its candidates.
        row_R: rows by request.
    """

    request_P: np.ndarray
    first_P: np.ndarray
    count_P: np.ndarray
    row_R: np.ndarray


def score_rows(scorer: Scorer, rows: RequestRows) -> np.ndarray:
    """Probabilities of each row, float32 [R, outputs]."""
    scores_RH = np.empty((len(rows.item_R), len(scorer.outputs)), np.float32)
    for row_UN, feed in batches(rows):
        real_UN = row_UN >= 0
        scores_RH[row_UN[real_UN]] = scorer.scores(feed)[real_UN]
    return scores_RH


def batches(rows: RequestRows) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """The rows of each batch, int64 [U, N] with -1 behind shorter lists, and its inputs by name."""
    pieces = _pieces(rows.request_R)
    length_P = rows.histories.length_R[pieces.request_P]
    order = np.lexsort((length_P, pieces.count_P))
    start = 0
    while start < len(order):
        stop = _stop(start, pieces.count_P[order], length_P[order])
        chosen = order[start:stop]
        start = stop
        widest = np.arange(pieces.count_P[chosen].max())
        place_UN = pieces.first_P[chosen, None] + np.minimum(widest, pieces.count_P[chosen, None] - 1)
        inside_UN = widest < pieces.count_P[chosen, None]
        # A shorter list is filled up with its last candidate.
        row_UN = pieces.row_R[place_UN]
        yield np.where(inside_UN, row_UN, -1), _feed(rows, pieces.request_P[chosen], row_UN)


def _feed(rows: RequestRows, request_U: np.ndarray, row_UN: np.ndarray) -> dict[str, np.ndarray]:
    histories = rows.histories
    end_U, length_U = histories.end_R[request_U], histories.length_R[request_U]
    back_S = np.arange(max(int(length_U.max()), 1), 0, -1)
    inside_US = back_S <= length_U[:, None]
    place_US = np.where(inside_US, end_U[:, None] - back_S, 0)

    def padded(column_E: np.ndarray) -> np.ndarray:
        if not len(column_E):
            return np.zeros(place_US.shape, column_E.dtype)
        return np.where(inside_US, column_E[place_US], column_E.dtype.type(0))

    return {
        **{name: values[request_U] for name, values in rows.shared.items()},
        "history_item": padded(histories.item_E),
        **{f"history_{name}": padded(column_E) for name, column_E in histories.columns.items()},
        **{f"candidate_{name}": values[row_UN] for name, values in rows.candidate.items()},
        "candidate_item": rows.item_R[row_UN],
    }


def _pieces(request_R: np.ndarray) -> _Pieces:
    row_R = np.argsort(request_R, kind="stable")
    count_Q = np.bincount(request_R)
    first_Q = np.cumsum(count_Q) - count_Q
    pieces_Q = -(-count_Q // MOST_CANDIDATES)
    request_P = np.repeat(np.arange(len(count_Q)), pieces_Q)
    skipped_P = (np.arange(len(request_P)) - np.repeat(np.cumsum(pieces_Q) - pieces_Q, pieces_Q)) * MOST_CANDIDATES
    count_P = np.minimum(count_Q[request_P] - skipped_P, MOST_CANDIDATES)
    return _Pieces(request_P, first_Q[request_P] + skipped_P, count_P, row_R)


def _stop(start: int, count_P: np.ndarray, length_P: np.ndarray) -> int:
    """Where a batch from `start` on ends: before its padded size exceeds `MOST_CELLS`; it has one piece at least."""
    pieces = np.arange(1, len(count_P) - start + 1)
    longest = np.maximum(np.maximum.accumulate(length_P[start:]), 1)
    cells = pieces * np.maximum.accumulate(count_P[start:]) * longest
    return start + max(1, int(np.searchsorted(cells, MOST_CELLS, side="right")))
