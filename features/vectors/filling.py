"""What an item without a vector gets in its place: nothing, the mean, or the mean of its neighbours' vectors."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from features.contract.vectors import Embedding, FillFromNeighbours
from features.store.schema import FIRST_VALUE, PADDING
from features.store.vector_files import ItemVectors
from features.vectors.coclicks import CoClicks
from features.vectors.neighbours import Score, coclicks_to, cosine_to, top_k
from features.vectors.transforms import blocks, mean_of

BY_CLICKS = "clicks"


def fill_missing(
    vector_set: ItemVectors,
    spec: Embedding,
    trained_I: np.ndarray,
    others: Mapping[str, ItemVectors],
    coclicks: CoClicks | None,
) -> None:
    """Write vectors, in place, for items that have none; presence stays False, `filled_I` tells who borrowed.

    Only items of the training window lend: `mean` is theirs, and neighbours are the `k` of them with a vector in this
    set that are nearest by co-clicks, or by the cosine of another set. New items borrow like all others. An item
    without such neighbours keeps zeros, as do the rows of padding and unknown items.

    Args:
        vector_set: a transformed set.
        spec: its declaration.
        trained_I: bool [items], items of the training window.
        others: the transformed sets, for `missing.by` one of them.
        coclicks: of the training window, for `missing.by: clicks`.
    """
    lends_I = vector_set.present_I & trained_I
    missing_Q = FIRST_VALUE + np.flatnonzero(~vector_set.present_I[FIRST_VALUE:])
    if spec.missing == "zero" or not lends_I.any():
        return
    if not isinstance(spec.missing, FillFromNeighbours):
        vector_set.vectors_IW[missing_Q] = mean_of(vector_set.vectors_IW, np.flatnonzero(lends_I))
        return
    score: Score
    if spec.missing.by == BY_CLICKS:
        assert coclicks is not None
        lenders_C = np.flatnonzero(lends_I)
        score = coclicks_to(coclicks, lenders_C)
    else:
        other = others[spec.missing.by]
        has_direction_I = other.present_I & other.vectors_IW.any(axis=1)
        lenders_C = np.flatnonzero(lends_I & has_direction_I)
        missing_Q = missing_Q[has_direction_I[missing_Q]]
        score = cosine_to(other.vectors_IW, lenders_C)
    for rows in blocks(len(missing_Q)):
        asked_Q = missing_Q[rows]
        nearest_QK = top_k(asked_Q, lenders_C, spec.missing.k, score)
        found_Q = (nearest_QK != PADDING).sum(axis=1)
        for rank in range(spec.missing.k):
            # Padding lends zeros, so that shorter lists add nothing.
            vector_set.vectors_IW[asked_Q] += vector_set.vectors_IW[nearest_QK[:, rank]]
        vector_set.vectors_IW[asked_Q] /= np.maximum(found_Q, 1)[:, None].astype(np.float32)
        vector_set.filled_I[asked_Q] = found_Q > 0
