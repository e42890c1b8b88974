"""How far two samples of one distribution differ by chance, when rows of a user and rows of a day are alike.

Shapes: K bins, C clusters (periods, or groups of users).

Rows are no independent draws: a user brings many, and every day has its own mix. Their counts are therefore more
uneven than multinomial ones, and tests that take rows as independent alarm on nothing. Three estimates of the
covariance of the difference of shares, divided by the mean shares, are made; the largest is the noise:

- rows: multinomial, `trace = (K - 1) (1/n + 1/m)`. This is the expected value of the PSI of two samples of n and m
  independent rows (Yurdakul, Statistical Properties of Population Stability Index, 2018).
- users: the spread between groups of users (random groups; Wolter, Introduction to Variance Estimation, ch. 2).
- days: the spread between periods, where both sides together have enough of them to know it.

The statistic `Q = sum (a - b)^2 / ((a + b) / 2)` is, without drift, a sum of weighted chi-squares whose mean is the
trace; scaled by it, it is compared with an F distribution whose degrees of freedom match the second moment
(Rao and Scott, The Analysis of Categorical Data from Complex Sample Surveys, 1981).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MIN_FREEDOM = 5.0  # periods beyond one a side, below which the spread between days is not known well enough


@dataclass(frozen=True)
class Counts:
    """One side of a comparison, in bins common to both.

    Args:
        periods: chosen periods, [C, K].
        groups: groups of users, over all periods, [G, K].
    """

    periods: np.ndarray
    groups: np.ndarray

    @property
    def total(self) -> np.ndarray:
        """Counts by bin, [K]."""
        return self.periods.sum(axis=0)

    @property
    def rows(self) -> float:
        """Counts in all."""
        return float(self.periods.sum())

    @property
    def shares(self) -> np.ndarray:
        """Shares by bin, [K]; zeros where nothing was counted."""
        return self.total / max(self.rows, 1.0)

    def rebinned(self, share_KN: np.ndarray) -> Counts:
        """Counts in other bins, of which bin n gets the share `share_KN[k, n]` of bin k."""
        return Counts(self.periods @ share_KN, self.groups @ share_KN)


@dataclass(frozen=True)
class Spread:
    """A covariance of shares divided by mean shares, [K, K], and the clusters (less the fitted ones) it comes from."""

    covariance: np.ndarray
    freedom: float

    @property
    def trace(self) -> float:
        """The expected value of Q under it."""
        return float(np.trace(self.covariance))

    def chance(self, statistic: float) -> float:
        """Probability that Q is at least so large without drift."""
        if self.trace <= 0:
            return 0.0 if statistic > 0 else 1.0
        # As many equal chi-squares as have the same mean and variance.
        dimensions = self.trace**2 / float((self.covariance**2).sum())
        return _tail(statistic / self.trace, dimensions, self.freedom)


@dataclass(frozen=True)
class Noise:
    """What chance does to the difference of shares, by every estimate there is.

    Args:
        spreads: rows, users and, where known, days.
        squares: of the difference of each bin's shares, divided by its mean share, [K].
    """

    spreads: tuple[Spread, ...]
    squares: np.ndarray

    @property
    def expected(self) -> float:
        """Q, and so about PSI, that chance alone gives."""
        return self._largest.trace

    @property
    def chance(self) -> float:
        """Probability of so large a difference, in all bins together or in any one, without drift.

        One test alone would miss much: noise of many bins drowns what happens in one, such as a new value.
        """
        together = self._largest.chance(float(self.squares.sum()))
        bins = len(self.squares)
        if bins <= 2:  # the two say the same
            return together
        alone = min(self._chance_of_bin(place) for place in range(bins))
        return min(1.0, 2 * min(together, bins * alone))

    @property
    def _largest(self) -> Spread:
        return max(self.spreads, key=lambda spread: spread.trace)

    def _chance_of_bin(self, place: int) -> float:
        spread = max(self.spreads, key=lambda spread: float(spread.covariance[place, place]))
        return _tail(float(self.squares[place] / spread.covariance[place, place]), 1.0, spread.freedom)


def noise(base: Counts, new: Counts) -> Noise:
    """What chance does to the difference of shares; both sides must have rows."""
    mean = (base.shares + new.shares) / 2
    kept = mean > 0
    scale = 1 / np.sqrt(mean[kept])
    sides = [Counts(side.periods[:, kept], side.groups[:, kept]) for side in (base, new)]
    spreads = [_between_rows(sides, mean[kept]), _between_users(sides, scale)]
    days = _between_days(sides, scale)
    if days is not None:
        spreads.append(days)
    return Noise(tuple(spreads), (base.shares - new.shares)[kept] ** 2 / mean[kept])


def _between_rows(sides: list[Counts], mean: np.ndarray) -> Spread:
    root = np.sqrt(mean)
    identity = np.eye(len(mean)) - np.outer(root, root)
    return Spread(identity * sum(1 / side.rows for side in sides), np.inf)


def _between_users(sides: list[Counts], scale: np.ndarray) -> Spread:
    found = []
    for side in sides:
        deviations, weights = _deviations(side.groups, scale)
        clusters = len(weights)
        if clusters > 1:
            # A choice of periods has fewer rows than the groups were counted on, and so more noise.
            thinner = side.groups.sum() / side.rows
            covariance = deviations.T @ deviations * clusters / (clusters - 1) * thinner
            found.append(Spread(covariance, clusters - 1.0))
    return _sum(found, len(scale))


def _between_days(sides: list[Counts], scale: np.ndarray) -> Spread | None:
    """A day's own variance, pooled over both sides, brought to the number of days each has."""
    pooled, freedom = np.zeros((len(scale), len(scale))), 0.0
    shrink = 0.0
    for side in sides:
        deviations, weights = _deviations(side.periods, scale)
        shrink += float((weights**2).sum())
        effective = 1 / float((weights**2).sum()) - 1
        if effective > 0.5:
            # With days i of variance v and weights w_i, the weighted mean m has Var(x_i - m) = v (1 - 2 w_i + Σ w²).
            # So E Σ w_i² (x_i - m)² = v Σ w_i² (1 - 2 w_i + Σ w²): dividing by the sum gives v without bias.
            expected = float((weights**2 * (1 - 2 * weights + (weights**2).sum())).sum())
            pooled += effective * (deviations.T @ deviations) / expected
            freedom += effective
    if freedom < MIN_FREEDOM:
        return None
    return Spread(pooled / freedom * shrink, freedom)


def _deviations(clusters_CK: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted deviation of each cluster's shares from all shares, [C, K], and weights [C]; empty clusters left out."""
    rows = clusters_CK.sum(axis=1)
    clusters_CK, rows = clusters_CK[rows > 0], rows[rows > 0]
    weights = rows / rows.sum()
    shares = clusters_CK.sum(axis=0) / rows.sum()
    return weights[:, None] * (clusters_CK / rows[:, None] - shares) * scale, weights


def _sum(spreads: list[Spread], bins: int) -> Spread:
    """The spread of a sum of independent parts; Welch and Satterthwaite's degrees of freedom."""
    covariance = sum((spread.covariance for spread in spreads), np.zeros((bins, bins)))
    trace = float(np.trace(covariance))
    if trace <= 0:
        return Spread(covariance, 1.0)
    return Spread(covariance, trace**2 / sum(spread.trace**2 / spread.freedom for spread in spreads))


def _tail(ratio: float, dimensions: float, freedom: float) -> float:
    """Upper tail of F at `ratio`, with `dimensions` and `dimensions * freedom` degrees of freedom."""
    from scipy.special import chdtrc, fdtrc

    if np.isinf(freedom):
        return float(chdtrc(dimensions, dimensions * ratio))
    return float(fdtrc(dimensions, dimensions * freedom, ratio))
