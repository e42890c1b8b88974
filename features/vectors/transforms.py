"""Normalising and reducing vectors: what is fitted sees training items alone, all others are only carried along.

Shapes: I items of the catalogue, F rows that are fitted on, W dimensions before and D after reducing. Everything runs
in blocks of rows, so that memory holds one set and a block, and sums are kept in float64: those of a million float32
rows are off in the third digit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from features.contract.vectors import Embedding, Truncation
from features.errors import DataError
from features.store.vector_files import ItemVectors
from features.vectors.projections import BLOCK, Projection, SetTransform


def transform(
    vector_set: ItemVectors, spec: Embedding, trained_I: np.ndarray, path: str, prior: SetTransform | None = None
) -> tuple[ItemVectors, SetTransform]:
    """Normalise, then reduce, as the contract says; `vector_set.vectors_IW` may be overwritten.

    Args:
        vector_set: a set as it was read.
        spec: its declaration.
        trained_I: bool [items], items of the training window: means and components are those of them.
        path: of the vectors, for messages.
        prior: what an earlier build learned; nothing is learned then.

    Returns:
        The set, and what was learned.

    Raises:
        DataError: `reduce.dim` is more than the vectors and the items in training allow, or there is none in training.
    """
    if prior is not None and prior.width != vector_set.width:
        raise DataError(
            f"{path}: its vectors are {vector_set.width} wide, {prior.width} in the version before. Give the set or "
            "the contract another name when the encoder changes."
        )
    fit_F = np.flatnonzero(vector_set.present_I & trained_I)
    learned = prior or _normaliser(vector_set.vectors_IW, spec, fit_F, path)
    vectors_IW = learned.apply(vector_set.vectors_IW)
    if prior is None and spec.reduce is not None and not isinstance(spec.reduce, Truncation):
        projection = _components(vectors_IW, spec.reduce.dim, fit_F, path)
        learned = replace(learned, projection=projection)
        vectors_IW = projection.apply(vectors_IW)
    vectors_IW[~vector_set.present_I] = 0
    return ItemVectors(vector_set.name, vectors_IW, vector_set.present_I, vector_set.filled_I), learned


def mean_of(vectors_VW: np.ndarray, fit_F: np.ndarray) -> np.ndarray:
    """Mean of these rows, float32 [width]."""
    totals = [vectors_VW[fit_F[rows]].sum(axis=0, dtype=np.float64) for rows in blocks(len(fit_F))]
    return (np.sum(totals, axis=0) / len(fit_F)).astype(np.float32)


def covariance(parts: Sequence[np.ndarray], means: Sequence[np.ndarray], fit_F: np.ndarray) -> np.ndarray:
    """Covariance of the parts laid side by side over these rows, float64 [sum of widths, sum of widths].

    Args:
        parts: float32 [items, width] each.
        means: float32 [width] each, over `fit_F`.
        fit_F: the rows that count.
    """
    width = sum(part.shape[1] for part in parts)
    total_WW = np.zeros((width, width))
    for rows in blocks(len(fit_F)):
        centred = [part[fit_F[rows]] - mean for part, mean in zip(parts, means, strict=True)]
        joined_BW = np.concatenate(centred, axis=1)
        total_WW += joined_BW.T @ joined_BW
    return total_WW / len(fit_F)


def principal_axes(covariance_WW: np.ndarray, dim: int) -> np.ndarray:
    """The `dim` directions of greatest variance, strongest first, as columns, float64 [width, dim].

    A direction's sign is arbitrary; here its entry of greatest size is positive, so that two builds agree.
    """
    variance_W, axes_WW = np.linalg.eigh(covariance_WW)
    strongest = np.argsort(-variance_W, kind="stable")[:dim]
    axes_WD = axes_WW[:, strongest]
    at_D = np.argmax(np.abs(axes_WD), axis=0)
    return axes_WD * np.where(axes_WD[at_D, np.arange(axes_WD.shape[1])] < 0, -1.0, 1.0)


def check_room(path: str, where: str, dim: int, width: int, items: int) -> None:
    """Raise DataError where `dim` directions cannot be found in so many dimensions over so many items."""
    if dim > min(width, items):
        raise DataError(
            f"{path}: {where} {dim} is more than {min(width, items)}, the smaller of its width and its items in "
            "training. Lower it."
        )


def blocks(rows: int) -> Iterator[slice]:
    """Slices of at most BLOCK rows, together all of them."""
    for start in range(0, rows, BLOCK):
        yield slice(start, min(start + BLOCK, rows))


def _normaliser(vectors_IW: np.ndarray, spec: Embedding, fit_F: np.ndarray, path: str) -> SetTransform:
    width = vectors_IW.shape[1]
    truncate_to = spec.reduce.dim if isinstance(spec.reduce, Truncation) else None
    if truncate_to is not None and truncate_to > width:
        raise DataError(f"{path}: reduce.dim {truncate_to} is more than its width {width}. Lower it.")
    if spec.normalize != "centre":
        return SetTransform(width, l2_normalize=spec.normalize == "l2", truncate_to=truncate_to)
    if not len(fit_F):
        raise DataError(
            f"{path}: none of its items is in the training window, so there is no mean for normalize: centre. "
            "Use l2, or give vectors of items that were clicked."
        )
    return SetTransform(width, mean_of(vectors_IW, fit_F), l2_normalize=True, truncate_to=truncate_to)


def _components(vectors_IW: np.ndarray, dim: int, fit_F: np.ndarray, path: str) -> Projection:
    check_room(path, "reduce.dim", dim, vectors_IW.shape[1], len(fit_F))
    mean_W = mean_of(vectors_IW, fit_F)
    axes_WD = principal_axes(covariance([vectors_IW], [mean_W], fit_F), dim)
    return Projection(mean_W, axes_WD.astype(np.float32))
