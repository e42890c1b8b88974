"""Which of several rankers is better, when each was trained with several seeds and all were judged on the same rows.

Shapes: N rows, S seeds, B resamples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ctr.metrics import Interval, RankedRows
from features.errors import DataError

RESAMPLES = 500


@dataclass(frozen=True)
class SeededAuc:
    """Mean AUC over seeds, with what it was in resamples of rows and seeds.

    Args:
        by_seed: AUC of each seed on all rows, float64 [S].
        drawn: mean AUC of each resample, float64 [B]; the b-th of all rankers is of the same rows.
    """

    by_seed: np.ndarray
    drawn: np.ndarray

    def interval(self) -> Interval:
        """Mean AUC and its 95 % percentile interval: other rows, and other seeds."""
        return _interval(float(self.by_seed.mean()), self.drawn)

    def minus(self, other: SeededAuc) -> Interval:
        """Difference of mean AUCs and its 95 % interval, paired by rows; one that excludes 0 is resolved."""
        return _interval(float(self.by_seed.mean() - other.by_seed.mean()), self.drawn - other.drawn)


def seeded_aucs(
    labels: np.ndarray, scores: Mapping[str, np.ndarray], resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, SeededAuc]:
    """Bootstrap rankers together: each resample draws rows once for all of them, and seeds for each by itself.

    So an interval holds both what other rows and what another training would have given; rows, which are hard or easy
    for all, cancel in a difference.

    Args:
        labels: 0 or 1, [N].
        scores: by ranker, [S, N]; a ranker without randomness has one row.
        resamples: B.
        seed: of the bootstrap.

    Raises:
        DataError: a ranker has another number of rows, or all labels are the same.
    """
    labels = np.asarray(labels, np.float64)
    if labels.min() == labels.max():
        raise DataError(f"AUC needs both classes, but all {len(labels)} labels are {labels[0]:.0f}.")
    for name, scores_SN in scores.items():
        if scores_SN.ndim != 2 or scores_SN.shape[1] != len(labels):
            raise DataError(f"scores of {name}: shape {scores_SN.shape}, but there are {len(labels)} labels.")
    generator = np.random.default_rng(seed)
    ranked = {name: [RankedRows(labels, one) for one in scores_SN] for name, scores_SN in scores.items()}
    ones = np.ones(len(labels))
    drawn: dict[str, list[float]] = {name: [] for name in scores}
    for _ in range(resamples):
        counts = np.bincount(generator.integers(0, len(labels), len(labels)), minlength=len(labels)).astype(np.float64)
        for name, seeds in ranked.items():
            chosen = np.bincount(generator.integers(0, len(seeds), len(seeds)), minlength=len(seeds))
            found = sum(often * one.auc(counts) for often, one in zip(chosen, seeds, strict=True) if often)
            drawn[name].append(float(found / len(seeds)))
    return {
        name: SeededAuc(np.array([one.auc(ones) for one in seeds]), np.array(drawn[name]))
        for name, seeds in ranked.items()
    }


def _interval(value: float, drawn: np.ndarray) -> Interval:
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return Interval(value, float(low), float(high))
