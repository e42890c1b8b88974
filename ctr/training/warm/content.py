"""Rows of new items from their content: what learned rows are of item vectors, by least squares.

Shapes: N items, W width of all their vectors, E embedding width.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from features.store.feature_set import FeatureSet
from features.store.vector_files import decoded

RIDGE = 0.1  # of the mean variance of a vector's components: rows of few clicks are noisy
ITEMS_AT_ONCE = 100_000


def rows_from_content(feature_set: FeatureSet, rows_VE: np.ndarray, is_new_V: np.ndarray) -> dict[int, np.ndarray]:
    """Id rows of new items, float64 [E] by index, of those that have a vector.

        r = mean + (v - mean v) B,   B = (Vᵀ V + λ 1)⁻¹ Vᵀ R

    over the items that have a learned row and a vector, both less their means; vectors of several sets stand side by
    side, zeros where one is missing.

    Args:
        feature_set: with the vectors, of the new vocabulary.
        rows_VE: the id table, in which the rows of new ids mean nothing.
        is_new_V: which of its rows are of new ids, bool [V].
    """
    sets = [one.name for one in feature_set.schema.vectors]
    index_I = feature_set.items[feature_set.schema.item[0].name]
    if not sets or not is_new_V.any():
        return {}
    has_I = np.any([feature_set.present(name) for name in sets], axis=0)
    item_N = np.flatnonzero(has_I & (index_I > 1))
    is_new_N = is_new_V[index_I[item_N]]
    learned_N, new_N = item_N[~is_new_N], item_N[is_new_N]
    if len(learned_N) < 2 or not len(new_N):
        return {}

    target_NE = rows_VE[index_I[learned_N]].astype(np.float64)
    mean_E = target_NE.mean(axis=0)
    sums = [vectors_NW.sum(axis=0) for _, vectors_NW in _pieces(feature_set, sets, learned_N)]
    mean_W = np.sum(sums, axis=0) / len(learned_N)
    products_WW, products_WE = 0.0, 0.0
    for at, vectors_NW in _pieces(feature_set, sets, learned_N):
        centred_NW = vectors_NW - mean_W
        products_WW = products_WW + centred_NW.T @ centred_NW
        products_WE = products_WE + centred_NW.T @ (target_NE[at] - mean_E)
    width = len(mean_W)
    ridge = RIDGE * np.trace(products_WW) / width
    if not ridge:
        return {}
    weights_WE = np.linalg.solve(products_WW + ridge * np.eye(width), products_WE)
    found: dict[int, np.ndarray] = {}
    for at, vectors_NW in _pieces(feature_set, sets, new_N):
        made_NE = mean_E + (vectors_NW - mean_W) @ weights_WE
        found |= dict(zip(index_I[new_N[at]].tolist(), made_NE, strict=True))
    return found


def _pieces(feature_set: FeatureSet, sets: list[str], item_N: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Vectors of these items, a piece at a time, side by side, float64 [piece, W]."""
    stored = [feature_set.stored_vectors(name) for name in sets]
    for start in range(0, len(item_N), ITEMS_AT_ONCE):
        at = slice(start, start + ITEMS_AT_ONCE)
        parts = [
            decoded(vectors[item_N[at]], None if scale is None else scale[item_N[at]]) for vectors, scale in stored
        ]
        yield at, np.concatenate(parts, axis=1).astype(np.float64)
