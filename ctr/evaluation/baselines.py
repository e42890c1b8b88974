"""Scores to compare a model with: item popularity, and the true probabilities of a simulated log."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from ctr.data.columns import column, row_weights, training_rate
from ctr.evaluation.metrics import log_loss
from features.encoding.encoder import Encoder
from features.errors import DataError
from features.sources.tables import require_columns, scan
from features.sources.times import microseconds
from features.store.feature_set import FeatureSet, SplitName
from features.store.schema import UNKNOWN

# Rows of weight 1 at the base rate that are added to each item, so that one click on a rare item counts little.
PRIOR_ROWS = 20


def popularity_scores(feature_set: FeatureSet, split: SplitName) -> np.ndarray:
    """The item's mean label in training, smoothed towards the base rate: (clicks + 20 rate) / (rows + 20).

    Clicks and rows are sums of row weights; the base rate is their ratio over all items. The user has no effect. An
    item without training rows gets the base rate.

    Args:
        feature_set: holds the training rows.
        split: whose rows are scored.

    Returns:
        float64 [rows of the split], in row order.
    """
    items = feature_set.schema.items
    item_N, weight_N = column(feature_set, "train", "item"), row_weights(feature_set, "train")
    rows_I = np.bincount(item_N, weights=weight_N, minlength=items)
    clicks_I = np.bincount(item_N, weights=weight_N * column(feature_set, "train", "label"), minlength=items)
    rate_I = (clicks_I + PRIOR_ROWS * training_rate(feature_set)) / (rows_I + PRIOR_ROWS)
    return rate_I[column(feature_set, split, "item")]


def base_rate_log_loss(feature_set: FeatureSet, split: SplitName) -> float:
    """Log loss of giving every row of a split the training window's mean label: what a model must be better than."""
    labels_N, weights_N = column(feature_set, split, "label"), row_weights(feature_set, split)
    return log_loss(labels_N, np.full(len(labels_N), training_rate(feature_set)), weights_N)


def optimum_scores(feature_set: FeatureSet, split: SplitName) -> np.ndarray | None:
    """The true click probabilities of a simulated log; a model scores higher only by chance.

    They are joined to the rows by (user, item, time) from the contract's `truth`.

    Args:
        feature_set: of a simulated log.
        split: whose rows are scored.

    Returns:
        float64 [rows of the split], in row order; None if the contract names no truth, or its file no longer exists.

    Raises:
        DataError: the truth lacks a column or a row of the split, or has two probabilities for one row.
    """
    truth = feature_set.contract.truth
    if truth is None or not Path(path := feature_set.contract.resolve(truth.path)).is_file():
        return None
    keys = ["user", "item", "time"]
    known = _truth(feature_set, split, path, truth.probability)
    twice = known.filter(known.select(keys).is_duplicated())
    if twice.height:
        raise DataError(f"{path}: {twice.height} rows share user, item and time with another; keep one of each.")
    parts = [pl.DataFrame({key: part[key] for key in keys}) for part in feature_set.rows(split)]
    found = pl.concat(parts).join(known, on=keys, how="left", maintain_order="left")["probability"]
    if found.null_count():
        raise DataError(
            f"{path}: no probability for {found.null_count()} of {len(found)} {split} rows. It belongs to another "
            "log: simulate again, or take `truth` out of the contract."
        )
    return found.to_numpy()


def optimal_lift_share(auc: float, optimum_auc: float) -> float:
    """Share of the optimum's AUC above chance that a model reaches: 1 for the optimum, 0 for chance.

    NaN where the optimum is not above chance, as where all rows have the same probability.
    """
    return (auc - 0.5) / (optimum_auc - 0.5) if optimum_auc > 0.5 else float("nan")


def _truth(feature_set: FeatureSet, split: SplitName, path: str, probability: str) -> pl.DataFrame:
    """The truth in the split's time window, with encoded ids: user, item, time, probability."""
    log = feature_set.contract.interactions
    window = feature_set.manifest.windows[split]
    table = scan(path)
    if log.time is None:
        raise DataError(f"{path}: a truth needs times to be matched by; take `truth` out of the contract.")
    require_columns(table, path, [log.user, log.item, log.time, probability])
    time = microseconds(table, path, log.time, log.time_unit)
    raw = (
        table.select(log.user, log.item, time.alias(log.time), pl.col(probability).cast(pl.Float64))
        .filter(pl.col(log.time).is_between(window.first_time, window.last_time))
        .collect()
    )
    encoder = Encoder.load(feature_set.path)
    try:
        user, item = encoder.users.encode(raw[log.user]), encoder.items.encode(raw[log.item])
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    rows = pl.DataFrame({"user": user, "item": item, "time": raw[log.time], "probability": raw[probability]})
    return rows.filter((pl.col("user") > UNKNOWN) & (pl.col("item") > UNKNOWN))
