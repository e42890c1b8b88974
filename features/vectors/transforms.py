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

LEAST_VARIANCE = 1e-6  # of a direction, relative to the strongest: float32 makes as much of none at all


def transform(
    one: ItemVectors, spec: Embedding, trained_I: np.ndarray, path: str, prior: SetTransform | None = None
) -> tuple[ItemVectors, SetTransform]:
    """Normalise, then reduce, as the contract says; `one.vectors_IW` may be overwritten.

    Args:
        one: a set as it was read.
        spec: its declaration.
        trained_I: bool [items], items of the training window: means, deviations and components are those of them.
        path: of the vectors, for messages.
        prior: what an earlier build learned; nothing is learned then.

    Returns:
        The set, and what was learned.

    Raises:
        DataError: `reduce.dim` is more than the vectors and the items in training allow, or there is none in training.
    """
    if prior is not None and prior.width != one.width:
        raise DataError(
            f"{path}: its vectors are {one.width} wide, {prior.width} in the version before. Another encoder needs "
            "another name of the set, or of the contract."
        )
    fit_F = np.flatnonzero(one.present_I & trained_I)
    learned = prior or _normaliser(one.vectors_IW, spec, fit_F, path)
    vectors_IW = learned.apply(one.vectors_IW)
    if prior is None and spec.reduce is not None and not isinstance(spec.reduce, Truncation):
        learned = replace(learned, onto=_components(vectors_IW, spec, fit_F, path))
        assert learned.onto is not None
        vectors_IW = learned.onto.apply(vectors_IW)
    vectors_IW[~one.present_I] = 0
    return ItemVectors(one.name, vectors_IW, one.present_I, one.filled_I), learned


def moments(vectors_VW: np.ndarray, fit_F: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of each dimension over these rows, float64 [width]; a constant has deviation 1."""
    total_W = np.zeros(vectors_VW.shape[1])
    low_W, high_W = np.full_like(total_W, np.inf), np.full_like(total_W, -np.inf)
    for rows in blocks(len(fit_F)):
        block_BW = vectors_VW[fit_F[rows]]
        total_W += block_BW.sum(axis=0, dtype=np.float64)
        low_W, high_W = np.minimum(low_W, block_BW.min(axis=0)), np.maximum(high_W, block_BW.max(axis=0))
    mean_W = total_W / len(fit_F)
    squares_W = np.zeros_like(mean_W)
    for rows in blocks(len(fit_F)):
        squares_W += np.square(vectors_VW[fit_F[rows]] - mean_W).sum(axis=0)
    deviation_W = np.sqrt(squares_W / len(fit_F))
    # Not by its deviation, which rounding makes a little more than nothing.
    deviation_W[low_W == high_W] = 1.0
    return mean_W, deviation_W


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


def principal_axes(covariance_WW: np.ndarray, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """The `dim` directions of greatest variance, strongest first: variances [dim] and axes [width, dim], float64.

    A direction's sign is arbitrary; here its entry of greatest size is positive, so that two builds agree.
    """
    variance_W, axes_WW = np.linalg.eigh(covariance_WW)
    strongest = np.argsort(-variance_W, kind="stable")[:dim]
    return variance_W[strongest], with_sign(axes_WW[:, strongest])


def with_sign(axes_WD: np.ndarray) -> np.ndarray:
    """Columns turned so that the entry of greatest size of each is positive."""
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
    cut = spec.reduce.dim if isinstance(spec.reduce, Truncation) else None
    if cut is not None and cut > width:
        raise DataError(f"{path}: reduce.dim {cut} is more than its width {width}. Lower it.")
    if spec.normalize in ("none", "l2"):
        return SetTransform(width, unit=spec.normalize == "l2", cut=cut)
    if not len(fit_F):
        raise DataError(
            f"{path}: none of its items is in the training window, so there is no mean for normalize: {spec.normalize}."
            " Use l2, or give vectors of items that were clicked."
        )
    if spec.normalize == "centre":
        return SetTransform(width, mean_of(vectors_IW, fit_F), unit=True, cut=cut)
    mean_W, deviation_W = (moment.astype(np.float32) for moment in moments(vectors_IW, fit_F))
    return SetTransform(width, mean_W, deviation_W, cut=cut)


def _components(vectors_IW: np.ndarray, spec: Embedding, fit_F: np.ndarray, path: str) -> Projection:
    assert spec.reduce is not None
    dim = spec.reduce.dim
    check_room(path, "reduce.dim", dim, vectors_IW.shape[1], len(fit_F))
    mean_W = mean_of(vectors_IW, fit_F)
    variance_D, axes_WD = principal_axes(covariance([vectors_IW], [mean_W], fit_F), dim)
    if spec.reduce.method == "whiten":
        varying = int((variance_D > LEAST_VARIANCE * variance_D[0]).sum())
        if varying < dim:
            way_out = f"Lower it to {varying}." if varying else "Leave the set out."
            raise DataError(
                f"{path}: reduce.dim {dim} is more than the {varying} directions in which its items in training "
                f"differ; the others cannot be whitened. {way_out}"
            )
        axes_WD = axes_WD / np.sqrt(variance_D)
    return Projection(mean_W, axes_WD.astype(np.float32))
