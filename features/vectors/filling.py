"""What an item without a vector gets in its place: nothing, the mean, or the mean of its neighbours' vectors.

Shapes: I items of the catalogue, C items that lend, Q items that borrow, K neighbours, W and V dimensions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from features.contract.vectors import Embedding, FillFromNeighbours
from features.errors import DataError
from features.store.schema import FIRST_VALUE, PADDING
from features.store.vector_files import ItemVectors
from features.vectors.coclicks import CoClicks
from features.vectors.neighbours import Score, coclicks_to, top_k
from features.vectors.projections import TRANSFORMS, to_unit
from features.vectors.transforms import blocks, mean_of

BY_CLICKS = "clicks"
LENDERS = "lenders"


@dataclass(frozen=True)
class Lenders:
    """Vectors that are lent, kept so that items which come later borrow as those of the build did.

    Args:
        vectors_CW: float32 [C, W]; of the mean, one row.
        by: the set whose cosine says who is near; None where everyone borrows the mean.
        units_CV: vectors of that set with norm 1, float32 [C, V].
        k: from how many neighbours an item borrows.
    """

    vectors_CW: np.ndarray
    by: str | None = None
    units_CV: np.ndarray | None = None
    k: int = 1

    @classmethod
    def learn(
        cls, vector_set: ItemVectors, missing: str | FillFromNeighbours, lends_I: np.ndarray, other: ItemVectors | None
    ) -> Lenders:
        """Of the items `lends_I`; those without a direction in `other` lend to nobody."""
        if other is None or not isinstance(missing, FillFromNeighbours):
            rows = np.flatnonzero(lends_I)
            nothing = np.empty((0, vector_set.width), np.float32)
            return cls(mean_of(vector_set.vectors_IW, rows)[None] if len(rows) else nothing)
        rows = np.flatnonzero(lends_I & has_direction(other.vectors_IW, other.present_I))
        return cls(vector_set.vectors_IW[rows], missing.by, to_unit(other.vectors_IW[rows]), missing.k)

    def lend(self, vectors_QW: np.ndarray, asking_QV: np.ndarray | None) -> np.ndarray:
        """Write the vectors that Q items borrow, in place; returns which found a neighbour, bool [Q].

        Args:
            vectors_QW: float32 [Q, W], zeros.
            asking_QV: their vectors in the set `by`, float32 [Q, V]; None for the mean, which is nobody's neighbour.
        """
        lenders = len(self.vectors_CW)
        found_Q = np.zeros(len(vectors_QW), bool)
        if not lenders or asking_QV is None or self.units_CV is None:
            vectors_QW += self.vectors_CW.sum(axis=0)
            return found_Q
        # Numbers from 1 on, since 0 is nobody, who lends zeros; those that ask are not among them.
        lent_CW = np.concatenate([np.zeros_like(self.vectors_CW[:1]), self.vectors_CW])
        units_CV, first = self.units_CV, lenders + 1

        def score(items_B: np.ndarray) -> np.ndarray:
            return to_unit(asking_QV[items_B - first]) @ units_CV.T

        for rows in blocks(len(vectors_QW)):
            asking = np.arange(rows.start, rows.stop) + first
            nearest_QK = top_k(asking, np.arange(1, first), self.k, score)
            for rank in range(self.k):
                vectors_QW[rows] += lent_CW[nearest_QK[:, rank]]
            count_Q = (nearest_QK != PADDING).sum(axis=1)
            vectors_QW[rows] /= np.maximum(count_Q, 1)[:, None].astype(np.float32)
            found_Q[rows] = count_Q > 0
        return found_Q

    def save(self, folder: Path, name: str) -> None:
        """Write below the feature set's folder."""
        target = folder / TRANSFORMS / name
        np.save(target / f"{LENDERS}.npy", self.vectors_CW)
        if self.units_CV is not None:
            np.save(target / f"{LENDERS}-units.npy", self.units_CV)
        (target / f"{LENDERS}.json").write_text(json.dumps({"by": self.by, "k": self.k}), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, name: str) -> Lenders:
        """Read what `save` wrote. Raises DataError where there is none."""
        target = folder / TRANSFORMS / name
        try:
            settings = json.loads((target / f"{LENDERS}.json").read_text(encoding="utf-8"))
            vectors_CW = np.load(target / f"{LENDERS}.npy", mmap_mode="r")
            units_CV = None if settings["by"] is None else np.load(target / f"{LENDERS}-units.npy", mmap_mode="r")
            return cls(vectors_CW, settings["by"], units_CV, settings["k"])
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{target}: what fills missing vectors cannot be read: {error}. Build again.") from None


def fill_missing(
    vector_set: ItemVectors,
    spec: Embedding,
    trained_I: np.ndarray,
    others: Mapping[str, ItemVectors],
    coclicks: CoClicks | None,
) -> Lenders | None:
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

    Returns:
        What items that come later borrow from; None if they borrow nothing, having no clicks.
    """
    lends_I = vector_set.present_I & trained_I
    missing_Q = FIRST_VALUE + np.flatnonzero(~vector_set.present_I[FIRST_VALUE:])
    if spec.missing == "zero":
        return None
    if isinstance(spec.missing, FillFromNeighbours) and spec.missing.by == BY_CLICKS:
        assert coclicks is not None
        if lends_I.any():
            lenders_C = np.flatnonzero(lends_I)
            _borrow(vector_set, missing_Q, lenders_C, spec.missing.k, coclicks_to(coclicks, lenders_C))
        return None
    other = others[spec.missing.by] if isinstance(spec.missing, FillFromNeighbours) else None
    lenders = Lenders.learn(vector_set, spec.missing, lends_I, other)
    if other is not None:
        missing_Q = missing_Q[has_direction(other.vectors_IW, other.present_I)[missing_Q]]
    for rows in blocks(len(missing_Q)):
        asked_Q = missing_Q[rows]
        borrowed_QW = np.zeros((len(asked_Q), vector_set.width), np.float32)
        found_Q = lenders.lend(borrowed_QW, None if other is None else other.vectors_IW[asked_Q])
        vector_set.vectors_IW[asked_Q] = borrowed_QW
        vector_set.filled_I[asked_Q] = found_Q
    return lenders


def has_direction(vectors_IW: np.ndarray, present_I: np.ndarray) -> np.ndarray:
    """Items that have a vector other than zeros, bool [I]: only those have a cosine."""
    return np.asarray(present_I & vectors_IW.any(axis=1))


def _borrow(vector_set: ItemVectors, missing_Q: np.ndarray, lenders_C: np.ndarray, k: int, score: Score) -> None:
    for rows in blocks(len(missing_Q)):
        asked_Q = missing_Q[rows]
        nearest_QK = top_k(asked_Q, lenders_C, k, score)
        found_Q = (nearest_QK != PADDING).sum(axis=1)
        for rank in range(k):
            # Padding lends zeros, so that shorter lists add nothing.
            vector_set.vectors_IW[asked_Q] += vector_set.vectors_IW[nearest_QK[:, rank]]
        vector_set.vectors_IW[asked_Q] /= np.maximum(found_Q, 1)[:, None].astype(np.float32)
        vector_set.filled_I[asked_Q] = found_Q > 0
