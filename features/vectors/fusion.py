"""Several vector sets as one: principal components of all together, of each, or what they have in common (CCA).

All three are one shape: `fused(i) = sum over sets m of (v_i^m - mean^m) A^m`, where a set that item i has no vector in
adds nothing. Only the matrices A^m [W_m, D] differ, and they are fitted on items of the training window that have a
vector of their own in every set.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from features.contract.vectors import Fusion
from features.errors import DataError
from features.store.vector_files import ItemVectors
from features.vectors.projections import FusedTransform, Projection
from features.vectors.transforms import check_room, covariance, mean_of, principal_axes, with_sign

CCA_RIDGE = 1e-3  # of a set's mean variance: what varies less counts for little, and a flat direction for nothing


def fuse(
    name: str, spec: Fusion, parts: Sequence[ItemVectors], trained_I: np.ndarray, prior: FusedTransform | None = None
) -> tuple[ItemVectors, FusedTransform]:
    """The fused set, `spec.dim` wide; present where at least one part is.

    - `concat_pca`: the parts side by side, then PCA. A part with more variance weighs more.
    - `pca_concat`: PCA of each part, then side by side. The dimensions are split evenly, the first parts taking one
      more where they do not divide: 10 over 3 parts is 4, 3, 3.
    - `cca`: the `dim` directions in which the parts agree most, the mean over the parts that the item has. Two parts:
      canonical correlation (Hotelling 1936) with a ridge; more: its MAXVAR generalisation (Kettenring 1971), the
      leading solutions of `C a = l blockdiag(C_mm + ridge I) a`. Each part's variates have a variance of about 1.

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
    vectors = [part.vectors_IW for part in parts]
    if spec.how == "pca_concat":
        axes = _axes_of_each(where, spec, parts, means, fit_F)
    elif spec.how == "concat_pca":
        check_room(where, "dim", spec.dim, sum(part.width for part in parts), len(fit_F))
        axes = _split(principal_axes(covariance(vectors, means, fit_F), spec.dim)[1], parts)
    else:
        check_room(where, "dim", spec.dim, min(part.width for part in parts), len(fit_F))
        axes = _shared_axes(where, covariance(vectors, means, fit_F), parts, spec.dim)
    projections = {
        part.name: Projection(mean_W, axes_WD.astype(np.float32))
        for part, mean_W, axes_WD in zip(parts, means, axes, strict=True)
    }
    return FusedTransform(projections, mean=spec.how == "cca")


def _axes_of_each(
    where: str, spec: Fusion, parts: Sequence[ItemVectors], means: Sequence[np.ndarray], fit_F: np.ndarray
) -> list[np.ndarray]:
    """PCA of each part, in columns of its own, [W_m, D] each."""
    axes, first = [], 0
    for place, (part, mean_W) in enumerate(zip(parts, means, strict=True)):
        dim = spec.dim // len(parts) + (place < spec.dim % len(parts))
        check_room(where, f"dim {spec.dim}: the share of set {part.name!r},", dim, part.width, len(fit_F))
        axes_WD = np.zeros((part.width, spec.dim))
        axes_WD[:, first : first + dim] = principal_axes(covariance([part.vectors_IW], [mean_W], fit_F), dim)[1]
        axes.append(axes_WD)
        first += dim
    return axes


def _shared_axes(where: str, covariance_WW: np.ndarray, parts: Sequence[ItemVectors], dim: int) -> list[np.ndarray]:
    """Directions of greatest agreement, [W_m, D] each, by whitening each part and taking the components of all."""
    whitening_WW = np.zeros_like(covariance_WW)
    first = 0
    for part in parts:
        own = slice(first, first + part.width)
        variance_W, axes_WW = np.linalg.eigh(covariance_WW[own, own])
        ridge = CCA_RIDGE * variance_W.mean()
        if ridge <= 0:
            raise DataError(f"{where}: all vectors of set {part.name!r} in training are equal. Leave it out.")
        whitening_WW[own, own] = axes_WW / np.sqrt(np.maximum(variance_W, 0) + ridge)
        first += part.width
    agreement_WW = whitening_WW.T @ covariance_WW @ whitening_WW
    _, loadings_WD = principal_axes(agreement_WW, dim)
    # Over all parts a solution has length 1; each part's share of it, about 1 / sqrt(parts), is brought back to 1.
    return _split(with_sign(whitening_WW @ loadings_WD) * np.sqrt(len(parts)), parts)


def _split(axes_WD: np.ndarray, parts: Sequence[ItemVectors]) -> list[np.ndarray]:
    """The rows of each part."""
    return np.split(axes_WD, np.cumsum([part.width for part in parts])[:-1])
