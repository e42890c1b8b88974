"""Slices: metrics of subsets of a split, by properties of item, user, history and day.

Shapes: N rows of the split, I items, U users.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ctr.data.columns import column, row_weights
from ctr.evaluation.bootstrap import auc_interval
from ctr.evaluation.metrics import auc, calibration_ratio, likelihoods
from features.store.feature_set import SPLITS, FeatureSet, SplitName
from features.store.schema import UNKNOWN

FEWEST_ROWS = 50  # of a slice with an AUC
HEAD_SHARE, TORSO_SHARE = 0.5, 0.9  # of training clicks
LENGTHS = (1, 5, 20, 50, 100)
KNOWN_FOR = ((1, "first day"), (7, "2 to 7 days"), (30, "8 to 30 days"))
MOST_DAYS = 14
DAY = 86_400_000_000  # µs


@dataclass(frozen=True)
class Slice:
    """Some rows of a split.

    Args:
        dimension: the property, e.g. `item popularity`.
        name: its value, e.g. `tail`.
        rows_N: which rows are in the slice, bool [N].
    """

    dimension: str
    name: str
    rows_N: np.ndarray


@dataclass(frozen=True)
class SliceResult:
    """Metrics of a slice.

    Args:
        dimension, name: of the slice.
        rows, positives: their numbers, not weighted.
        metrics: `log_loss` in nats; `calibration_ratio` if the slice has a positive; `ece` from 1,000 rows on; `auc` if
            it has both classes and 50 rows, with `auc_low` and `auc_high` if the rows are of two users or more.
    """

    dimension: str
    name: str
    rows: int
    positives: int
    metrics: dict[str, float]


def slices(feature_set: FeatureSet, split: SplitName) -> list[Slice]:
    """The slices of a split that have rows.

    new items             items without a training row; with rows but no click; with a click
    item popularity       head: the most clicked items, which hold half of the training clicks; torso: the next, to 90 %
    history length        number of events that the row may read
    <set> vector          whether the target has one
    user                  whether the user has a training row
    user in feature set   time since the user's first row in it; at most the window of the feature set
    day                   UTC days, in at most 14 spans

    Args:
        feature_set: holds the rows.
        split: which of them.
    """
    rows = {name: column(feature_set, split, name) for name in ("item", "user", "time", "history_len")}
    found = [
        *_by_item(feature_set, rows["item"]),
        *_by_length(rows["history_len"], feature_set.schema.history_max_len),
        *_by_vector(feature_set, rows["item"]),
        *_by_user(feature_set, rows["user"], rows["time"]),
        *_by_day(rows["time"]),
    ]
    return [one for one in found if one.rows_N.any()]


def slice_metrics(feature_set: FeatureSet, split: SplitName, scores: np.ndarray) -> list[SliceResult]:
    """Weighted metrics of all rows (dimension `all`), then of each slice; intervals are over users.

    Args:
        feature_set: whose rows were scored.
        split: which of them.
        scores: probabilities in stored row order, [N].

    Raises:
        NumericalError: a score is not a probability.
    """
    columns = (
        column(feature_set, split, "label").astype(np.float64),
        scores,
        row_weights(feature_set, split),
        column(feature_set, split, "user"),
    )
    everything = Slice("all", "all rows", np.ones(len(scores), bool))
    return [
        _judged(one, *(values[one.rows_N] for values in columns)) for one in (everything, *slices(feature_set, split))
    ]


def _judged(one: Slice, labels: np.ndarray, scores: np.ndarray, weights: np.ndarray, users: np.ndarray) -> SliceResult:
    rows, positives = len(labels), int(labels.sum())
    # Rows of weight 0 do not count as positives or negatives.
    counted = labels[weights > 0]
    metrics = likelihoods(labels, scores, weights) if len(counted) else {}
    if counted.any():
        metrics["calibration_ratio"] = calibration_ratio(labels, scores, weights)
    if rows >= FEWEST_ROWS and 0 < counted.sum() < len(counted):
        metrics["auc"] = auc(labels, scores, weights)
        if len(np.unique(users[weights > 0])) > 1:
            found = auc_interval(labels, scores, weights, clusters=users)
            metrics |= {"auc_low": found.low, "auc_high": found.high}
    return SliceResult(one.dimension, one.name, rows, positives, metrics)


def _by_item(feature_set: FeatureSet, item_N: np.ndarray) -> Iterator[Slice]:
    rows_I, clicks_I = training_counts(feature_set)
    yield Slice("new items", "no training row", rows_I[item_N] == 0)
    yield Slice("new items", "no training click", (rows_I[item_N] > 0) & (clicks_I[item_N] == 0))
    yield Slice("new items", "clicked in training", clicks_I[item_N] > 0)
    tier_I = popularity_tiers(clicks_I)
    for tier, name in enumerate(("head", "torso", "tail")):
        yield Slice("item popularity", name, tier_I[item_N] == tier)


def training_counts(feature_set: FeatureSet) -> tuple[np.ndarray, np.ndarray]:
    """Total weight of the training rows and of the clicks of each item, float64 [I] each; 0 for the unknown item."""
    items = feature_set.schema.items
    shown, weight_N = column(feature_set, "train", "item"), row_weights(feature_set, "train")
    rows_I = np.bincount(shown, weights=weight_N, minlength=items)
    clicks_I = np.bincount(shown, weights=weight_N * column(feature_set, "train", "label"), minlength=items)
    rows_I[UNKNOWN] = clicks_I[UNKNOWN] = 0  # the rows of all unknown items together
    return rows_I, clicks_I


def popularity_tiers(clicks_I: np.ndarray) -> np.ndarray:
    """Tier of each item, int64 [I]: 0 for the most clicked items with half of the clicks, 1 up to 90 %, 2 the rest.

    Args:
        clicks_I: weight of the clicks of each item, [I].
    """
    order = np.argsort(-clicks_I, kind="stable")
    # The share of the items before it decides, so the first item is always in the head.
    before = np.cumsum(clicks_I[order]) - clicks_I[order]
    share = before / (clicks_I.sum() or 1)
    tier_I = np.empty(len(clicks_I), np.int64)
    tier_I[order] = np.where(clicks_I[order] == 0, 2, np.digitize(share, [HEAD_SHARE, TORSO_SHARE]))
    return tier_I


def _by_length(length_N: np.ndarray, longest: int) -> Iterator[Slice]:
    yield Slice("history length", "0", length_N == 0)
    # Longer histories are cut to the longest, so the last slice is open.
    lengths = [low for low in LENGTHS if low <= longest]
    for low, high in zip(lengths, (*lengths[1:], None), strict=True):
        name = f"{low} or more" if high is None else f"{low} to {high - 1}"
        yield Slice("history length", name, (length_N >= low) & (high is None or length_N < high))


def _by_vector(feature_set: FeatureSet, item_N: np.ndarray) -> Iterator[Slice]:
    for one in feature_set.schema.vectors:
        present_N = np.asarray(feature_set.present(one.name))[item_N]
        yield Slice(f"{one.name} vector", "has one", present_N)
        yield Slice(f"{one.name} vector", "lacks one", ~present_N)


def _by_user(feature_set: FeatureSet, user_N: np.ndarray, time_N: np.ndarray) -> Iterator[Slice]:
    # Not whether the id has an index of its own: an id of few training rows shares that of unknown ones.
    shown_U = np.bincount(column(feature_set, "train", "user"), minlength=feature_set.schema.users) > 0
    shown_U[UNKNOWN] = False  # all unknown users together
    known_N = shown_U[user_N]
    yield Slice("user", "known from training", known_N)
    yield Slice("user", "new", ~known_N)
    first_U = np.full(feature_set.schema.users, np.iinfo(np.int64).max)
    for split in SPLITS:
        np.minimum.at(first_U, column(feature_set, split, "user"), column(feature_set, split, "time"))
    age_N = (time_N - first_U[user_N]) / DAY
    if not age_N.any():
        return  # a log without times
    before = 0.0
    for days, name in KNOWN_FOR:
        yield Slice("user in feature set", name, (age_N >= before) & (age_N < days))
        before = days
    yield Slice("user in feature set", "more than 30 days", age_N >= before)


def _by_day(time_N: np.ndarray) -> Iterator[Slice]:
    day_N = time_N // DAY
    days = int(day_N.max() - day_N.min()) + 1
    if days < 2:
        return
    width = -(-days // MOST_DAYS)
    span_N = (day_N - day_N.min()) // width
    for span in range(int(span_N.max()) + 1):
        first = np.datetime64(int(day_N.min()) + span * width, "D")
        last = min(first + width - 1, np.datetime64(int(day_N.max()), "D"))
        yield Slice("day", str(first) if first == last else f"{first} to {last}", span_N == span)
