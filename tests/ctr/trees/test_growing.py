"""Growing trees on columns of which training knows hardly any number."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ctr.config import ModelConfig
from ctr.trees import growing
from ctr.trees.ensemble import Ensemble
from ctr.trees.growing import Rows, grow

CONFIG = ModelConfig(base="boosting", trees=5)


def rows(seed: int) -> Rows:
    """The first column tells the label, the second nothing."""
    draw = np.random.default_rng(seed)
    features = draw.normal(size=(400, 2)).astype(np.float32)
    return Rows(features, (features[:, 0] + draw.normal(size=400) > 0).astype(np.float64), np.ones(400))


@pytest.mark.parametrize("known", [0, 3])
def test_a_column_without_any_number_that_counts_is_never_read(known: int):
    """Whatever stands there later; the numbers that are there belong to rows of weight 0."""
    train, valid = rows(0), rows(1)
    train.features[known:, 1] = np.nan
    train.weights[:known] = 0
    before = train.features.copy()
    grown = grow(train, valid, CONFIG, seed=0)
    np.testing.assert_array_equal(train.features, before)
    ensemble = Ensemble(CONFIG.trees, CONFIG.tree_leaves)
    grown.put_into(ensemble)
    scores = ensemble(torch.from_numpy(valid.features))
    assert scores.std() > 0
    valid.features[:, 1] = np.nan
    assert torch.equal(ensemble(torch.from_numpy(valid.features)), scores)


def test_of_many_rows_a_column_that_a_sample_would_miss_is_never_read(monkeypatch: pytest.MonkeyPatch):
    """scikit-learn bins a sample of many rows, in which a number that is hardly ever known may not be."""
    monkeypatch.setattr(growing, "BINNED_ROWS", 399)
    train, valid = rows(0), rows(1)
    train.features[:, 1] = np.nan
    # Far apart, and told by their label alone: a tree would split here.
    train.features[:40, 1], train.labels[:40] = 5, 1
    monkeypatch.setattr(growing, "LEAST_KNOWN", 0.2)
    skipped = grow(train, valid, CONFIG, seed=0)
    monkeypatch.setattr(growing, "LEAST_KNOWN", 0.05)
    read = grow(train, valid, CONFIG, seed=0)
    blank = np.column_stack([train.features[:, 0], np.full(400, np.nan, np.float32)])
    np.testing.assert_array_equal(skipped.logits(train.features), skipped.logits(blank))
    assert (read.logits(train.features) != read.logits(blank)).any()


def test_any_seed_of_a_training_grows_trees():
    train, valid = rows(0), rows(1)
    of_one = [grow(train, valid, CONFIG, seed).logits(valid.features) for seed in (-1, 2**32 - 1, 2**40 - 1)]
    np.testing.assert_array_equal(of_one[0], of_one[1])
    np.testing.assert_array_equal(of_one[0], of_one[2])
