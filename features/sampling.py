"""Random draws that a seed fixes for ever: of rows to fit on, whatever the chunks they come in, and of negatives."""

from __future__ import annotations

import hashlib

import numpy as np
import polars as pl

from features.schema import FIRST_VALUE
from features.vocabulary import Vocabulary


def mixed(state: np.ndarray | np.uint64, value: np.ndarray | np.uint64) -> np.ndarray:
    """A state and a value to 64 well mixed bits: the finalizer of SplitMix64 (Steele, Lea, Flood 2014)."""
    with np.errstate(over="ignore"):
        bits = (state ^ np.asarray(value).astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return bits ^ (bits >> np.uint64(31))


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


def id_hashes(ids: Vocabulary) -> np.ndarray:
    """64 bits of each id of a catalogue, whatever row it has there, uint64 [size]; 0 for padding and unknown.

    Whole numbers are mixed; of text it is the first 8 bytes of its sha256.
    """
    if ids.whole_numbers:
        hashed = mixed(np.uint64(0), ids.values.to_numpy())
    else:
        texts = ids.values.cast(pl.String).to_list()
        hashed = np.array(
            [int.from_bytes(hashlib.sha256(one.encode()).digest()[:8], "big") for one in texts], np.uint64
        )
    return np.concatenate([np.zeros(FIRST_VALUE, np.uint64), hashed])
