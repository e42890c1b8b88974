"""Reproducible random draws: of rows to fit on, whatever chunks they come in, and of negatives."""

from __future__ import annotations

import numpy as np

MOST_FITTED = 2_000_000  # training rows that a column of numbers is fitted on


def mixed(state: np.ndarray | np.uint64, value: np.ndarray | np.uint64) -> np.ndarray:
    """A state and a value to 64 well mixed bits: the finalizer of SplitMix64 (Steele, Lea, Flood 2014)."""
    with np.errstate(over="ignore"):
        bits = (state ^ np.asarray(value).astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return bits ^ (bits >> np.uint64(31))


def one_in(rows: int) -> int:
    """One row is fitted on of so many, such that of `rows` rows at most `MOST_FITTED` are."""
    return max(-(-rows // MOST_FITTED), 1)


def drawn(first: int, rows: int, one_in: int, seed: int = 1) -> np.ndarray:
    """Which rows of a chunk are drawn: one at random out of each `one_in` neighbours of the whole.

    Not every k-th: rows of a page stand in a fixed order, and pages of k rows would all give the row of one slot. Each
    row is decided by its number in the whole, so that chunks of any size draw the same rows.

    Args:
        first: number of the chunk's first row in the whole, from 0.
        rows: how many rows the chunk has.
        one_in: one row is drawn of so many.
        seed: another seed draws other rows.

    Returns:
        Places in the chunk, ascending, int64.
    """
    if one_in == 1:
        return np.arange(rows)
    group = np.arange(first // one_in, -(-(first + rows) // one_in))
    chosen = (mixed(mixed(np.uint64(seed), np.uint64(0)), group) % np.uint64(one_in)).astype(np.int64)
    places = group * one_in + chosen - first
    return places[(places >= 0) & (places < rows)]
