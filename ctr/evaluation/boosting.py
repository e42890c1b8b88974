"""Gradient boosting as a control: trees on the same point-in-time information, without embeddings.

The trees are those of `architecture: boosting` at its default settings, and so are their tabular features.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ctr.config import ModelConfig
from ctr.data.columns import column, row_weights
from ctr.trees.feature_rows import feature_rows
from ctr.trees.growing import Rows, grow
from features.errors import ConfigError
from features.store.feature_set import FeatureSet, SplitName

SETTINGS = ModelConfig()


def counters_control(feature_set: FeatureSet, splits: Sequence[SplitName], seeds: int) -> dict[SplitName, np.ndarray]:
    """Boosting on the point-in-time counters of items and users alone. Arguments and result as `tabular_control`.

    Raises:
        ConfigError: the data contract declares no counters.
    """
    made = {one: _counters(feature_set, one) for one in _needed(splits)}
    return _boosted(made, feature_set, splits, seeds)


def tabular_control(feature_set: FeatureSet, splits: Sequence[SplitName], seeds: int) -> dict[SplitName, np.ndarray]:
    """Boosting on every tabular feature that a network could read.

    `ctr.trees.tabular_features` says which these are.

    Args:
        feature_set: what to train on.
        splits: to score.
        seeds: number of trainings, with seeds 1 to this number. Up to 200,000 training rows, scikit-learn bins all of
            them and draws nothing at random, so all trainings are equal.

    Returns:
        Probabilities by split, float64 [seeds, rows].
    """
    made = {one: feature_rows(feature_set, one) for one in _needed(splits)}
    return _boosted(made, feature_set, splits, seeds)


def _boosted(
    made: dict[SplitName, np.ndarray], feature_set: FeatureSet, splits: Sequence[SplitName], seeds: int
) -> dict[SplitName, np.ndarray]:
    """Scores of trees trained on train, their number chosen by the weighted log loss on valid; [seeds, rows] each."""
    train, valid = (
        Rows(made[one], column(feature_set, one, "label"), row_weights(feature_set, one)) for one in ("train", "valid")
    )
    grown = [grow(train, valid, SETTINGS, seed) for seed in range(1, seeds + 1)]
    return {split: np.concatenate([one.probabilities(made[split]) for one in grown]) for split in splits}


def _needed(judged: Sequence[SplitName]) -> set[SplitName]:
    return {"train", "valid", *judged}


def _counters(feature_set: FeatureSet, split: SplitName) -> np.ndarray:
    schema, counted = feature_set.schema, feature_set.contract.counters
    names = [one.name for one in (*schema.candidate, *schema.context) if one.name in counted]
    if not names:
        raise ConfigError("counters control: the data contract declares no `counters`; leave it out of the study.")
    return np.concatenate([np.stack([part[name] for name in names], axis=1) for part in feature_set.rows(split)])
