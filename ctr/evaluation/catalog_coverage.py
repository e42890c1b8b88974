"""Catalog coverage and novelty of top lists: the k best scored rows of each group, against all rows of the split.

Shapes: N rows of the split, L listed rows, I items.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ctr.data.columns import column, row_weights
from ctr.evaluation.ranking_metrics import groups_of
from ctr.evaluation.slices import popularity_tiers, training_counts
from features.errors import ConfigError, DataError, NumericalError
from features.store.feature_set import FeatureSet, SplitName
from features.store.schema import FIRST_VALUE, PADDING
from features.store.versions import instants_of

TAIL = 2  # of `popularity_tiers`
DRAWS = 10  # of random lists
MOST_VALUES = 32  # calibration is measured by value for item columns of at most so many values


@dataclass(frozen=True)
class ListMeasure:
    """One measure of the listed rows, beside the same measure of rows chosen without scores.

    Args:
        listed: of the listed rows.
        random: of as many random rows of each group, mean over 10 draws. The difference from `listed` is the effect of
            the scores: any list favours the rows of small groups, and few rows are less even than many.
        shown: of all rows of the split.
    """

    listed: float
    random: float
    shown: float


@dataclass(frozen=True)
class ValueCalibration:
    """Predicted against observed clicks of the listed rows whose item has one value of one column.

    Args:
        field: the item column.
        value: its encoded value; 1 is unknown or missing.
        rows, positives: how many are listed, and of those clicked. A row with several tags counts in each.
        ratio: weighted sum of scores / of labels; above 1 promises too many. None where nothing was clicked.
    """

    field: str
    value: int
    rows: int
    positives: int
    ratio: float | None


@dataclass(frozen=True)
class TopLists:
    """What the lists show. Means are over listed rows, so that a longer list weighs more.

    Args:
        k: longest list.
        groups: lists, one a request or user.
        groups_cut: groups with more than k rows. A smaller group lists all its rows, whatever the scores: if few
            groups are cut, the measures below say little about the model.
        rows: listed rows.
        items: distinct items in all rows of the split.
        coverage: share of these items that stand in any list.
        gini: how unevenly these items are shown: 0 if all equally often, near 1 if only a few are shown.
        novelty: mean of -log2 of the item's share of training rows, in bits; one bit more means half as common. Each
            item counts one row more than training has, so that a new item has a share too.
        tail_share: share of items beyond those that hold 90 % of the training clicks.
        new_share: share of items without a training row.
        calibration: weighted sum of scores / of labels of the listed rows. Choosing the
            highest scores favours those that are too high, so it often exceeds that of all rows. None if none of them
            was clicked.
        by_value: the same for each value of each item column of at most 32 values.
    """

    k: int
    groups: int
    groups_cut: int
    rows: int
    items: int
    coverage: ListMeasure
    gini: ListMeasure
    novelty: ListMeasure
    tail_share: ListMeasure
    new_share: ListMeasure
    calibration: float | None
    by_value: tuple[ValueCalibration, ...]


def top_lists(feature_set: FeatureSet, split: SplitName, scores: np.ndarray, k: int = 10) -> TopLists:
    """List the k best scored rows of each request (of each user, where the log names no requests).

    Args:
        feature_set: whose rows were scored.
        split: which of them.
        scores: probabilities in stored row order, [N].
        k: longest list.

    Raises:
        ConfigError: k below 1.
        DataError: the split has no rows, or another number of them than there are scores.
        NumericalError: a score is not a probability.
    """
    item_N, label_N = (column(feature_set, split, name) for name in ("item", "label"))
    instant_N = np.concatenate([instants_of(part) for part in feature_set.rows(split)])
    score_N, weight_N = np.asarray(scores, np.float64), row_weights(feature_set, split)
    _require_probabilities(score_N, len(item_N), split)
    groups_N = groups_of(feature_set, split)
    listed_N = best_rows(score_N, groups_N, k)
    generator = np.random.default_rng(1)
    facts = _ItemFacts.of(feature_set, item_N)
    drawn = [facts.means(item_N[best_rows(generator.random(len(item_N)), groups_N, k)]) for _ in range(DRAWS)]
    random, listed, shown = np.mean(drawn, axis=0), facts.means(item_N[listed_N]), facts.means(item_N)
    coverage, gini_, novelty, tail, new = (
        ListMeasure(*(float(one) for one in measure)) for measure in zip(listed, random, shown, strict=True)
    )
    sizes_G = np.unique(groups_N, return_counts=True)[1]
    return TopLists(
        k=k,
        groups=len(sizes_G),
        groups_cut=int((sizes_G > k).sum()),
        rows=int(listed_N.sum()),
        items=int(facts.shown_I.sum()),
        coverage=coverage,
        gini=gini_,
        novelty=novelty,
        tail_share=tail,
        new_share=new,
        calibration=_ratio(score_N[listed_N] @ weight_N[listed_N], label_N[listed_N] @ weight_N[listed_N]),
        by_value=tuple(
            _by_value(feature_set, *(one[listed_N] for one in (item_N, instant_N, label_N, score_N, weight_N)))
        ),
    )


def best_rows(scores: np.ndarray, groups: np.ndarray, k: int) -> np.ndarray:
    """Which rows are among the k best scored of their group, bool [N].

    Ties are broken at random, in the same way at every call. Stored order must not break them: it is often the order
    of time, or has the clicked row first.

    Args:
        scores: any numbers that rank, [N].
        groups: request or user of each row, [N].
        k: rows of a list.

    Raises:
        ConfigError: k below 1.
    """
    if k < 1:
        raise ConfigError(f"top lists: k must be at least 1, got {k}. Ten is usual.")
    tie_break_N = np.random.default_rng(0).permutation(len(scores))
    order_N = np.lexsort((tie_break_N, -scores, groups))
    sorted_N = groups[order_N]
    first_N = np.concatenate([[True], sorted_N[1:] != sorted_N[:-1]])
    start_N = np.maximum.accumulate(np.where(first_N, np.arange(len(scores)), 0))
    listed_N = np.empty(len(scores), bool)
    listed_N[order_N] = np.arange(len(scores)) - start_N < k
    return listed_N


def gini(counts: np.ndarray) -> float:
    """Gini coefficient of how often each item is shown: 0 if all equally often, 1 - 1/I if only one is shown.

    With counts c_i in rising order, 2 Σ i c_i / (I Σ c) - (I + 1) / I.

    Args:
        counts: times each item is shown, [I], zeros included; not all zero.
    """
    rising_I = np.sort(counts).astype(np.float64)
    items = len(rising_I)
    return float(2 * (np.arange(1, items + 1) @ rising_I) / (items * rising_I.sum()) - (items + 1) / items)


@dataclass(frozen=True)
class _ItemFacts:
    """Properties of each item, [I]: whether the split shows it, its novelty in bits, in the tail, new."""

    shown_I: np.ndarray
    novelty_I: np.ndarray
    tail_I: np.ndarray
    new_I: np.ndarray

    @classmethod
    def of(cls, feature_set: FeatureSet, item_N: np.ndarray) -> _ItemFacts:
        rows_I, clicks_I = training_counts(feature_set)
        real_items = len(rows_I) - FIRST_VALUE
        return cls(
            shown_I=np.bincount(item_N, minlength=len(rows_I)) > 0,
            novelty_I=-np.log2((rows_I + 1) / (rows_I.sum() + real_items)),
            tail_I=popularity_tiers(clicks_I) == TAIL,
            new_I=rows_I == 0,
        )

    def means(self, item_L: np.ndarray) -> np.ndarray:
        """Coverage, gini, novelty, tail share and new share of some rows, float64 [5]."""
        times_I = np.bincount(item_L, minlength=len(self.shown_I))[self.shown_I]
        by_row = (one[item_L].mean() for one in (self.novelty_I, self.tail_I, self.new_I))
        return np.array([(times_I > 0).mean(), gini(times_I), *by_row])


def _ratio(predicted: float, observed: float) -> float | None:
    return float(predicted / observed) if observed else None


def _by_value(
    feature_set: FeatureSet,
    item_L: np.ndarray,
    instant_L: np.ndarray,
    label_L: np.ndarray,
    score_L: np.ndarray,
    weight_L: np.ndarray,
) -> Iterator[ValueCalibration]:
    """Columns in schema order without the id, their values (as of the row's instant) in rising order."""
    known = feature_set.items_as_of(item_L, instant_L)
    for field in feature_set.schema.item[1:]:
        if field.kind == "numeric" or field.size - FIRST_VALUE > MOST_VALUES:
            continue
        value_LV = known[field.name].reshape(len(item_L), -1)
        values, each = value_LV.ravel(), value_LV.shape[1]
        rows = np.bincount(values, minlength=field.size)
        clicks = np.bincount(values, weights=np.repeat(label_L > 0, each), minlength=field.size)
        observed = np.bincount(values, weights=np.repeat(weight_L * label_L, each), minlength=field.size)
        predicted = np.bincount(values, weights=np.repeat(weight_L * score_L, each), minlength=field.size)
        for value in np.flatnonzero(rows):
            if value != PADDING:
                ratio = _ratio(predicted[value], observed[value])
                yield ValueCalibration(field.name, int(value), int(rows[value]), int(clicks[value]), ratio)


def _require_probabilities(score_N: np.ndarray, rows: int, split: SplitName) -> None:
    if not rows:
        raise DataError(f"no rows to list: the {split} split is empty. Enlarge its share under `split`.")
    if score_N.shape != (rows,):
        raise DataError(f"scores: shape {score_N.shape}, but the {split} split has {rows} rows. Score each row once.")
    wrong_N = ~((score_N >= 0) & (score_N <= 1))
    if wrong_N.any():
        raise NumericalError(
            f"scores: {int(wrong_N.sum())} of {rows} are not probabilities, e.g. {score_N[wrong_N][0]:.4g} in row "
            f"{int(wrong_N.argmax())}. Apply the sigmoid to logits first."
        )
