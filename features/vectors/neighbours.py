"""Exact nearest items: blocks of a matrix of scores, the best k of each row kept, memory bounded by one block.

Shapes: I items of the catalogue, Q items asked for, C candidates, B items of one block, K neighbours, W dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from features.store.schema import PADDING
from features.vectors.coclicks import CoClicks
from features.vectors.projections import to_unit

SCORES_A_BLOCK = 1 << 23

Score = Callable[[np.ndarray], np.ndarray]


def top_k(items_Q: np.ndarray, candidates_C: np.ndarray, k: int, score: Score) -> np.ndarray:
    """The `k` candidates of highest score for each item, int32 [Q, k], best first; 0 where there are fewer.

    Args:
        items_Q: catalogue rows.
        candidates_C: catalogue rows, ascending; of equal scores the lowest row wins.
        k: how many.
        score: float32 [B, C] of a block of items with all candidates, -inf for pairs that must not be; a new array
            each time, which is written to. An item is left out of its own candidates here.
    """
    best_QK = np.full((len(items_Q), k), PADDING, np.int32)
    step = max(1, SCORES_A_BLOCK // max(1, len(candidates_C)))
    for start in range(0, len(items_Q) if len(candidates_C) else 0, step):
        items_B = items_Q[start : start + step]
        scores_BC = score(items_B)
        place_B = np.minimum(np.searchsorted(candidates_C, items_B), len(candidates_C) - 1)
        itself = np.flatnonzero(candidates_C[place_B] == items_B)
        scores_BC[itself, place_B[itself]] = -np.inf
        row, place, rank = _highest(scores_BC, k)
        best_QK[start + row, rank] = candidates_C[place]
    return best_QK


def cosine_to(vectors_IW: np.ndarray, candidates_C: np.ndarray, mean_W: np.ndarray | float = 0.0) -> Score:
    """Scores by the cosine of vectors, after `mean_W` is taken away from each."""
    mean_W = np.asarray(mean_W, np.float32)
    unit_CW = to_unit(vectors_IW[candidates_C] - mean_W)

    def score(items_B: np.ndarray) -> np.ndarray:
        return to_unit(vectors_IW[items_B] - mean_W) @ unit_CW.T

    return score


def coclicks_to(coclicks: CoClicks, candidates_C: np.ndarray) -> Score:
    """Scores by normalised co-clicks; -inf for pairs that no user clicked both of."""
    towards_UC = coclicks.towards(candidates_C)

    def score(items_B: np.ndarray) -> np.ndarray:
        scores_BC = np.full((len(items_B), len(candidates_C)), -np.inf, np.float32)
        row, place, values = _entries(coclicks.between(items_B, towards_UC))
        scores_BC[row, place] = values
        return scores_BC

    return score


def _entries(matrix: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, column and value of what is stored in a sparse matrix; each pair once."""
    row = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    return row, matrix.indices, matrix.data


def _highest(scores_BC: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, column and rank of the k highest finite scores of each row; of equal ones the first column wins."""
    width = scores_BC.shape[1]
    if k < width:
        least_B = np.partition(scores_BC, width - k, axis=1)[:, width - k]
        row, place = np.nonzero((scores_BC >= least_B[:, None]) & (scores_BC > -np.inf))
    else:
        row, place = np.nonzero(scores_BC > -np.inf)
    order = np.lexsort((place, -scores_BC[row, place], row))
    row, place = row[order], place[order]
    rank = np.arange(len(row)) - np.searchsorted(row, row)
    return row[rank < k], place[rank < k], rank[rank < k]
