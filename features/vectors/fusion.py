"""Several vector sets as one: the principal components of all of them side by side.

`fused(i) = sum over sets m of (v_i^m - mean^m) A^m`, where a set that item i has no vector in adds nothing. The
matrices A^m [W_m, D] are fitted on items of the training window that have a vector of their own in every set.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from features.contract.vectors import Fusion
from features.errors import DataError
from features.store.vector_files import ItemVectors
from features.vectors.projections import FusedTransform, Projection
from features.vectors.transforms import check_room, covariance, mean_of, principal_axes


def fuse(
    name: str, spec: Fusion, parts: Sequence[ItemVectors], trained_I: np.ndarray, prior: FusedTransform | None = None
) -> tuple[ItemVectors, FusedTransform]:
    """The fused set, `spec.dim` wide; present where at least one part is.

    A set with more variance weighs more. To give each set dimensions of its own, `reduce` each and do not fuse.

    Args:
        name: of the fused set.
        spec: its declaration.
        parts: transformed and filled, in the order of `spec.sets`; a vector lent by neighbours counts as the item's.
        trained_I: bool [items], items of the training window.
        prior: what an earlier build learned; nothing is learned then.

    Returns:
        The set, and what was learned.

    Raises:
        DataError: `dim` is more than the parts and their common items in training allow.
    """
    learned = prior or _learn(f"vectors.fusion.{name}", spec, parts, trained_I)
    has = {part.name: part.present_I | part.filled_I for part in parts}
    fused_ID = learned.apply({part.name: part.vectors_IW for part in parts}, has)
    present_I = np.logical_or.reduce([part.present_I for part in parts])
    any_I = np.logical_or.reduce(list(has.values()))
    return ItemVectors(name, fused_ID, present_I, any_I & ~present_I), learned


def _learn(where: str, spec: Fusion, parts: Sequence[ItemVectors], trained_I: np.ndarray) -> FusedTransform:
    fit_F = np.flatnonzero(np.logical_and.reduce([trained_I, *(part.present_I for part in parts)]))
    if not len(fit_F):
        sets = ", ".join(part.name for part in parts)
        raise DataError(f"{where}: no item in training has a vector in each of {sets}. Leave one of them out.")
    means = [mean_of(part.vectors_IW, fit_F) for part in parts]
    check_room(where, "dim", spec.dim, sum(part.width for part in parts), len(fit_F))
    axes_WD = principal_axes(covariance([part.vectors_IW for part in parts], means, fit_F), spec.dim)
    axes = np.split(axes_WD, np.cumsum([part.width for part in parts])[:-1])
    projections = {
        part.name: Projection(mean_W, axes_WD.astype(np.float32))
        for part, mean_W, axes_WD in zip(parts, means, axes, strict=True)
    }
    return FusedTransform(projections)
