"""Whether the items that two feature sets know have the same vectors in both.

Shapes: C items that are compared.
"""

from __future__ import annotations

import numpy as np

from features.encoding.encoder import Encoder
from features.encoding.vocabulary import Vocabulary
from features.store.feature_set import FeatureSet
from features.store.schema import FIRST_VALUE
from features.store.vector_files import decoded

COMPARED_ITEMS = 2_000
MOST_CHANGED = 0.5  # of the items that both know: more are another encoder, fewer are items that were edited
OTHER = 0.5  # of a vector's length: farther away is another vector, nearer may be the same one less another mean


def items_of_both(old: Vocabulary, new: Vocabulary) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the items that both know, in the one and in the other, [C] each; of more than 2,000, a random sample.

    Ids that were numbers and are text now, or the reverse, are others.
    """
    if old.values.dtype != new.values.dtype:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    old_I = old.encode(new.values)
    known_I = np.flatnonzero(old_I >= FIRST_VALUE)
    some_C = np.random.default_rng(0).choice(known_I, min(COMPARED_ITEMS, len(known_I)), replace=False)
    some_C = np.sort(some_C)
    return old_I[some_C], some_C + FIRST_VALUE


def distances(
    old: FeatureSet, new: FeatureSet, name: str, old_C: np.ndarray, new_C: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """How far vectors have moved, in units of the old one's length.

    Args:
        old, new: feature sets that have the set in the same width.
        name: of the vector set.
        old_C, new_C: rows of the same items.

    Returns:
        Places among the items of those that have a vector in both, and their distances; empty where none has.
    """
    both_C = np.flatnonzero(old.present(name)[old_C] & new.present(name)[new_C])
    was, is_now = _vectors(old, name, old_C[both_C]), _vectors(new, name, new_C[both_C])
    lengths = np.linalg.norm(was, axis=1)
    return both_C, np.linalg.norm(is_now - was, axis=1) / np.maximum(lengths, np.finfo(np.float64).tiny)


def other_encoders(old: FeatureSet, new: FeatureSet) -> tuple[str, ...]:
    """Vector sets of another encoder under the same `version`: the vectors of most items that both know are others.

    What a build learns from a window turns as well: sets that are learned, reduced or fused are not looked at.

    Args:
        old, new: versions of feature sets.
    """
    old_C, new_C = items_of_both(Encoder.load(old.path).items, Encoder.load(new.path).items)
    found = []
    widths = {one.name: one.width for one in old.schema.vectors}
    for one in new.schema.vectors:
        spec = new.contract.embeddings.get(one.name)
        before = old.contract.embeddings.get(one.name)
        if spec is None or before is None or spec.version != before.version or widths.get(one.name) != one.width:
            continue
        if spec.reduce is not None or spec.learn is not None:
            continue
        _, moved = distances(old, new, one.name, old_C, new_C)
        if len(moved) and (moved > OTHER).mean() > MOST_CHANGED:
            found.append(one.name)
    return tuple(found)


def _vectors(feature_set: FeatureSet, name: str, rows: np.ndarray) -> np.ndarray:
    stored, scale = feature_set.stored_vectors(name)
    return decoded(stored[rows], None if scale is None else scale[rows]).astype(np.float64)
