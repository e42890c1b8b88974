"""Exact nearest items: blocks of a matrix of scores, the best k of each row kept, memory bounded by one block.

Shapes: I items of the catalogue, Q items asked for, C candidates, B items of one block, K neighbours, W dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from features.contract.vectors import Neighbours
from features.errors import ConfigError
from features.store.schema import FIRST_VALUE, PADDING
from features.store.vector_files import ItemVectors
from features.vectors.coclicks import CoClicks
from features.vectors.projections import to_unit

SCORES_A_BLOCK = 1 << 23

Score = Callable[[np.ndarray], np.ndarray]


def nearest_neighbours(
    name: str,
    spec: Neighbours,
    vector_set: ItemVectors,
    trained_I: np.ndarray,
    item_columns: dict[str, np.ndarray],
    coclicks: CoClicks | None,
) -> np.ndarray:
    """The `k` nearest items of every item with a vector, best first, int32 [items, k] catalogue rows, 0 where fewer.

    score(i, j) = cosine(v_i, v_j) + coclicks * n_ij / sqrt(n_i n_j)

    Candidates are items of the training window. So a new item has neighbours at once, all of them with a learned id,
    while it is nobody's neighbour: what training rows see does not depend on items that came later. An item is not its
    own neighbour; one without a vector of its own, or with one of zeros, has none and is nobody's.

    Args:
        name: of the column, for messages.
        spec: its declaration. With `same`, neighbours share the value (tags: at least one) of that item column;
            padding and unknown values are shared by nobody.
        vector_set: the vectors.
        trained_I: bool [items], items of the training window.
        item_columns: encoded item columns, for `same`.
        coclicks: of the training window; needed where `spec.coclicks` is not 0.

    Raises:
        ConfigError: `same` is no item column, or one of numbers.
    """
    has_vector_I = vector_set.present_I & vector_set.vectors_IW.any(axis=1)
    items_Q, candidates_C = np.flatnonzero(has_vector_I), np.flatnonzero(has_vector_I & trained_I)
    score = cosine_to(vector_set.vectors_IW, candidates_C)
    if spec.coclicks:
        assert coclicks is not None
        score = _reweighted(score, coclicks, candidates_C, spec.coclicks)
    if spec.same is not None:
        score = _where_same(score, shared_with(_column(name, spec.same, item_columns), candidates_C))
    nearest_IK = np.full((len(vector_set.present_I), spec.k), PADDING, np.int32)
    nearest_IK[items_Q] = top_k(items_Q, candidates_C, spec.k, score)
    return nearest_IK


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


def shared_with(column: np.ndarray, candidates_C: np.ndarray) -> Score:
    """bool [B, C]: whether items share the value of a column, int32 [items], or one of its tags, [items, max_len]."""
    if column.ndim == 1:
        of_C = column[candidates_C]
        return lambda items_B: (column[items_B, None] == of_C) & (of_C >= FIRST_VALUE)
    from scipy import sparse

    row, place = np.nonzero(column >= FIRST_VALUE)
    shape = (len(column), int(column.max(initial=0)) + 1)
    has_IV: Any = sparse.csr_array((np.ones(len(row), np.float32), (row, column[row, place])), shape=shape)
    towards_VC = has_IV[candidates_C].T.tocsr()
    return lambda items_B: (has_IV[items_B] @ towards_VC).toarray() > 0


def _reweighted(score: Score, coclicks: CoClicks, candidates_C: np.ndarray, weight: float) -> Score:
    towards_UC = coclicks.towards(candidates_C)

    def total(items_B: np.ndarray) -> np.ndarray:
        scores_BC = score(items_B)
        row, place, values = _entries(coclicks.between(items_B, towards_UC))
        scores_BC[row, place] += np.float32(weight) * values
        return scores_BC

    return total


def _where_same(score: Score, shared: Score) -> Score:
    def filtered(items_B: np.ndarray) -> np.ndarray:
        return np.where(shared(items_B), score(items_B), -np.inf)

    return filtered


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


def _column(name: str, same: str, item_columns: dict[str, np.ndarray]) -> np.ndarray:
    kept = sorted(column for column, values in item_columns.items() if values.dtype.kind == "i")
    if same not in kept:
        what = "a number, which items do not share" if same in item_columns else "no item column"
        raise ConfigError(f"vectors.neighbours.{name}.same: {same!r} is {what}. Choose one of {kept}.")
    return item_columns[same]
