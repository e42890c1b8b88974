"""Columns of a split's rows, all parts as one array in stored order.

Shapes: N rows of the split.
"""

from __future__ import annotations

import numpy as np

from features.store.feature_set import FeatureSet, SplitName


def column(feature_set: FeatureSet, split: SplitName, name: str) -> np.ndarray:
    """One column of a split's rows, [N]."""
    return np.concatenate([part[name] for part in feature_set.rows(split)])


def row_weights(feature_set: FeatureSet, split: SplitName) -> np.ndarray:
    """What each row counts, float64 [N]: `interactions.weight` of the data contract, ones where it names none."""
    parts = feature_set.rows(split)
    if all("weight" in part for part in parts):
        return column(feature_set, split, "weight").astype(np.float64)
    return np.ones(sum(len(part["item"]) for part in parts))


def training_rate(feature_set: FeatureSet) -> float:
    """Weighted share of positives among the training rows."""
    labels_N, weights_N = column(feature_set, "train", "label"), row_weights(feature_set, "train")
    return float(labels_N.astype(np.float64) @ weights_N / weights_N.sum())
