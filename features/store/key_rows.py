"""A row for each key that occurred, where a key is one index, or several together.

Shapes: P parts of a key, K keys that occurred, Q keys asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from features.errors import ConfigError

MOST_KEYS = 2**62  # that could occur, so that each is a number of 64 bits


@dataclass(frozen=True)
class KeyRows:
    """Rows 0 to K - 1 are the keys that occurred, in order; row K stands for all that did not.

    Args:
        sizes: of each part, one more than its largest index.
        keys: combined, ascending, int64 [K].
    """

    sizes: tuple[int, ...]
    keys: np.ndarray

    @property
    def count(self) -> int:
        """How many rows there are, with the one of keys that did not occur."""
        return len(self.keys) + 1

    def rows_of(self, key_Q: np.ndarray) -> np.ndarray:
        """The row of each combined key, int64 [Q]."""
        if not len(self.keys):
            return np.zeros(len(key_Q), np.int64)
        place_Q = np.minimum(np.searchsorted(self.keys, key_Q), len(self.keys) - 1)
        return np.where(self.keys[place_Q] == key_Q, place_Q, len(self.keys))

    def with_keys(self, key_Q: np.ndarray) -> tuple[KeyRows, np.ndarray]:
        """With these keys too; and the new row of each row before, the last one included, int64 [K + 1]."""
        grown = KeyRows(self.sizes, np.union1d(self.keys, key_Q))
        return grown, np.append(np.searchsorted(grown.keys, self.keys), len(grown.keys))


def combined(parts: Sequence[np.ndarray], sizes: Sequence[int]) -> np.ndarray:
    """One number for each combination of indices, int64 [Q]; an index that is no part's is no combination: -1."""
    key_Q = np.zeros(1, np.int64)
    legal_Q = np.ones(1, bool)
    for part_Q, size in zip(parts, sizes, strict=True):
        key_Q = key_Q * size + part_Q
        legal_Q = legal_Q & (part_Q < size)
    return np.where(legal_Q, key_Q, -1)


def refuse_too_many(where: str, sizes: Sequence[int]) -> None:
    """Raise ConfigError, naming `where`, for parts of which more combinations than `MOST_KEYS` could occur."""
    possible = 1
    for size in sizes:
        possible *= size
    if possible > MOST_KEYS:
        raise ConfigError(
            f"{where}: a key of {len(sizes)} parts, of {' x '.join(map(str, sizes))} values, could be one of "
            f"{possible:.1e}, more than 2^62. Take a column out of the key, or declare one with fewer values."
        )
