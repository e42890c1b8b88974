"""What a model has to beat: item popularity from below, the true probabilities from above."""

from __future__ import annotations

import numpy as np

from features.feature_set import FeatureSet, SplitName

# Training rows at the base rate that every item starts with, so that one lucky click is no popularity.
PRIOR_ROWS = 20


def popularity_scores(feature_set: FeatureSet, split: SplitName) -> np.ndarray:
    """The item's mean label in training, smoothed towards the base rate: (clicks + 20 rate) / (rows + 20).

    Knows nothing of the user, and gives an item without training rows the base rate.

    Returns:
        float64 [rows of the split], in row order.
    """
    train = feature_set.rows("train")
    items = feature_set.schema.items
    item_N = np.concatenate([part["item"] for part in train])
    label_N = np.concatenate([part["label"] for part in train])
    rows_I = np.bincount(item_N, minlength=items)
    clicks_I = np.bincount(item_N, weights=label_N, minlength=items)
    rate_I = (clicks_I + PRIOR_ROWS * label_N.mean(dtype=np.float64)) / (rows_I + PRIOR_ROWS)
    return rate_I[np.concatenate([part["item"] for part in feature_set.rows(split)])]
