"""Rows drawn again by whole users: how much other users of the kind would have changed a number.

Rows of one user share the user's luck, so they are drawn together: bootstrap of rows as if they were independent gives
intervals that are too narrow wherever users have many rows.

Shapes: N rows, U clusters (users).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from features.errors import DataError


class Clusters:
    """The users of some rows, drawn with replacement.

    Args:
        names: user of each row, [N]; rows of one value are drawn together.

    Raises:
        DataError: there are no rows, or `names` is not one value a row.
    """

    def __init__(self, names: np.ndarray) -> None:
        names = np.asarray(names)
        if names.ndim != 1 or not len(names):
            raise DataError(f"clusters: expected one user a row, got shape {names.shape}.")
        distinct, self._of_row_N = np.unique(names, return_inverse=True)
        self.count = len(distinct)

    def by_user(self, resamples: int, seed: int) -> Iterator[np.ndarray]:
        """How often each user is drawn, float64 [U], once a resample; as many draws as there are users."""
        generator = np.random.default_rng(seed)
        for _ in range(resamples):
            drawn = generator.integers(0, self.count, self.count)
            yield np.bincount(drawn, minlength=self.count).astype(np.float64)

    def by_row(self, resamples: int, seed: int) -> Iterator[np.ndarray]:
        """How often each row is drawn, float64 [N], once a resample."""
        for times_U in self.by_user(resamples, seed):
            yield times_U[self._of_row_N]

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Sum over the rows of each user, float64 [U, ...] of [N, ...]."""
        total = np.zeros((self.count, *values.shape[1:]))
        np.add.at(total, self._of_row_N, values)
        return total
