"""How much one column changed, and how likely chance is to change it so.

PSI is `sum (a - b) ln(a / b)` over bins; 0.1 and 0.25 are the usual marks of a moderate and of a large change
(Siddiqi, Credit Risk Scorecards, 2006). The Jensen-Shannon distance is the root of the divergence in bits (Lin,
Divergence Measures Based on the Shannon Entropy, 1991): 0 for equal shares, 1 for disjoint ones. From both, what chance
alone would give is subtracted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from features.monitor.drift.bins import Common, in_common
from features.monitor.drift.noise import Counts, noise
from features.monitor.profile.bins import Bins


@dataclass(frozen=True)
class Comparison:
    """One test of a column.

    Args:
        sizes: of the change, by measure.
        chance: probability of so much without drift.
        base, new: the share compared; None of distributions.
        expected: PSI that chance alone gives; 0 of shares.
    """

    sizes: dict[str, float]
    chance: float
    base: float | None = None
    new: float | None = None
    expected: float = 0.0


@dataclass(frozen=True)
class Measured:
    """The tests of one column, and both sides' counts in common bins where a distribution was compared."""

    column: str
    tests: tuple[Comparison, ...]
    common: Common | None = None


def measure_column(column: str, base_bins: Bins, new_bins: Bins, base: Counts, new: Counts) -> Measured | None:
    """Compare two tallies of a column; None where it is of another kind in the new set."""
    if column == "label" or column.startswith("label."):
        return Measured(column, _share("label_rate", base, new, 1))
    if column.startswith("vectors."):
        return Measured(column, _share("coverage", base, new, 0))
    common = in_common(base_bins, base, new_bins, new)
    if common is None:
        return None
    missing = () if column == "history_length" else _share("missing", base, new, -1)
    if len(common.names) < 2 or not common.base.rows or not common.new.rows:
        return Measured(column, missing)
    return Measured(column, (_distribution(common), *missing), common)


def measure_items(column: str, base: tuple[float, int], new: tuple[float, int]) -> Measured:
    """Compare the share of catalogue items with a vector, each side given as (share, items)."""
    counts = [np.array([[share * items, (1 - share) * items]]) for share, items in (base, new)]
    before, after = (Counts(side, side) for side in counts)
    return Measured(column, _share("coverage", before, after, 0))


def psi(base: np.ndarray, new: np.ndarray) -> float:
    """Population stability index of two vectors of counts; half a count is added to each bin, so none is empty."""
    a, b = ((counts + 0.5) / (counts + 0.5).sum() for counts in (base, new))
    return float(((a - b) * np.log(a / b)).sum())


def jensen_shannon(base: np.ndarray, new: np.ndarray) -> float:
    """Jensen-Shannon divergence of two vectors of shares, in nats."""
    mean = (base + new) / 2

    def divergence(shares: np.ndarray) -> float:
        some = shares > 0
        return float((shares[some] * np.log(shares[some] / mean[some])).sum())

    return max(0.0, (divergence(base) + divergence(new)) / 2)


def _distribution(common: Common) -> Comparison:
    base, new = common.base, common.new
    chance = noise(base, new)
    # For small changes, the divergence in nats is an eighth of PSI.
    divergence = max(0.0, jensen_shannon(base.shares, new.shares) - chance.expected / 8)
    sizes = {
        "psi": max(0.0, psi(base.total, new.total) - chance.expected),
        "js": float(np.sqrt(divergence / np.log(2))),
    }
    return Comparison(sizes, chance.chance, expected=chance.expected)


def _share(measure: str, base: Counts, new: Counts, place: int) -> tuple[Comparison, ...]:
    """Test the share of one bin; no test where a side counted nothing."""
    if not base.rows or not new.rows:
        return ()
    base, new = _one_bin(base, place), _one_bin(new, place)
    before, after = float(base.shares[1]), float(new.shares[1])
    size = abs(after - before)
    if measure == "label_rate":
        size /= max(before, 1 / base.rows)
    return (Comparison({measure: size}, noise(base, new).chance, before, after),)


def _one_bin(counts: Counts, place: int) -> Counts:
    """All other bins, and this one."""
    chosen = np.zeros(len(counts.total))
    chosen[place] = 1.0
    return counts.rebinned(np.stack([1 - chosen, chosen], axis=1))
