"""Brings the counts of two feature sets into bins that mean the same in both, neither too many nor too rare.

Shapes: K bins of one side, N common bins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from features.monitor.drift.noise import Counts
from features.monitor.profile.bins import ORIGIN, REST, Bins, Edges, Grid, Values, rest_bin

MIN_SHARE = 0.01  # of both sides' mean: rarer values are judged together
NUMBER_BINS = 10  # the deciles that PSI is used with
LARGEST = 710.475  # asinh of the largest float64, rounded down: sinh of more is no number


@dataclass(frozen=True)
class Common:
    """Both sides in the same bins, without the missing ones.

    Args:
        names: of the bins, [N].
        base, new: counts.
    """

    names: tuple[str, ...]
    base: Counts
    new: Counts


def in_common(base_bins: Bins, base: Counts, new_bins: Bins, new: Counts) -> Common | None:
    """Common bins of two tallies, or None where the column is of another kind in the new set."""
    base, new = (Counts(side.periods[:, :-1], side.groups[:, :-1]) for side in (base, new))
    if isinstance(base_bins, Values) and isinstance(new_bins, Values):
        return _rare_together(_values(base_bins, base, new_bins, new))
    if isinstance(base_bins, Grid) and isinstance(new_bins, Grid):
        return _deciles(_grids(base_bins, base, new_bins, new))
    if isinstance(base_bins, Edges) and isinstance(new_bins, Edges):
        return _edges(base_bins, base, new_bins, new)
    return None


def _values(base_bins: Values, base: Counts, new_bins: Values, new: Counts) -> Common:
    """Values whose count both know keep their bin; all others are found by their hash."""
    known = []
    for bins, other in ((base_bins, new_bins), (new_bins, base_bins)):
        # A side without a rest has named all it saw: of any other value it counted none.
        there = set(other.names)
        known += [name for name in bins.names if name in there or not other.rest]
    place = {name: i for i, name in enumerate(dict.fromkeys(known))}
    shared = tuple(place)
    names = (*shared, *(f"others {i + 1}" for i in range(REST)))

    def rebinned(bins: Values, counts: Counts) -> Counts:
        into = [place.get(name, len(shared) + rest_bin(name)) for name in bins.names]
        into += [len(shared) + i for i in range(bins.rest)]
        return counts.rebinned(_matrix(into, len(names)))

    return Common(names, rebinned(base_bins, base), rebinned(new_bins, new))


def _grids(base_bins: Grid, base: Counts, new_bins: Grid, new: Counts) -> Common:
    """Bins of the coarser grid; an open bin is taken to reach as far as its first neighbour would."""
    step = max(base_bins.step, new_bins.step)
    places = [
        np.arange(bins.first - 1, bins.first + bins.inner + 1) >> (step - bins.step) for bins in (base_bins, new_bins)
    ]
    used = np.unique(np.concatenate(places))
    matrices = [_matrix(np.searchsorted(used, place), len(used)) for place in places]
    starts = np.clip(ORIGIN + used * 2.0**step, -LARGEST, LARGEST).tolist()
    names = tuple(f"from {math.sinh(start):.4g}" for start in starts)
    return Common(names, base.rebinned(matrices[0]), new.rebinned(matrices[1]))


def _edges(base_bins: Edges, base: Counts, new_bins: Edges, new: Counts) -> Common:
    """The base's buckets. Of a new bucket that an edge of the base divides, only the sum is known.

    It is divided as the base would have it, so that buckets with other edges are no drift by themselves.
    """
    edges, new_edges = np.array(base_bins.edges), np.array(new_bins.edges)
    below_base = np.cumsum(base.shares)[:-1]
    below_new = np.concatenate([[0.0], np.cumsum(new.shares)])
    bucket = np.searchsorted(new_edges, edges, side="right")
    known = np.isin(edges, new_edges)
    mass = new.shares[bucket]
    with np.errstate(invalid="ignore", divide="ignore"):
        part = np.where((mass > 0) & ~known, np.clip((below_base - below_new[bucket]) / mass, 0, 1), 0.0)
    at = np.concatenate([[0.0], bucket + part, [len(new_edges) + 1.0]])
    start = np.arange(len(new_edges) + 1)[:, None]
    share_KN = np.clip(np.minimum(at[1:], start + 1) - np.maximum(at[:-1], start), 0, None)
    ends = ["-inf", *(f"{edge:.4g}" for edge in base_bins.edges)]
    return Common(tuple(f"from {end}" for end in ends), base, new.rebinned(share_KN))


def _rare_together(common: Common) -> Common:
    mean = (common.base.shares + common.new.shares) / 2
    often = mean >= MIN_SHARE
    if often.all():
        return common
    into = np.where(often, np.cumsum(often) - 1, often.sum())
    names = (*(name for name, kept in zip(common.names, often.tolist(), strict=True) if kept), "rare values")
    matrix = _matrix(into, len(names))
    return Common(names, common.base.rebinned(matrix), common.new.rebinned(matrix))


def _deciles(common: Common) -> Common:
    """Neighbours joined until each has a tenth of both sides' mean."""
    mean = (common.base.shares + common.new.shares) / 2
    into, names, filled = [], [], 1.0
    for name, share in zip(common.names, mean.tolist(), strict=True):
        if filled >= 1 / NUMBER_BINS and share > 0:
            names.append(name)
            filled = 0.0
        into.append(max(len(names) - 1, 0))
        filled += share
    matrix = _matrix(into, max(len(names), 1))
    return Common(tuple(names) or common.names[:1], common.base.rebinned(matrix), common.new.rebinned(matrix))


def _matrix(into: Sequence[int] | np.ndarray, bins: int) -> np.ndarray:
    """Bin k goes to bin `into[k]` as a whole, [K, bins]."""
    matrix = np.zeros((len(into), bins))
    matrix[np.arange(len(into)), into] = 1.0
    return matrix
