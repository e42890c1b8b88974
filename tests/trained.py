"""Models that need not be trained, and the small raw log that bundles are made from in the tests."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from ctr.config import ModelConfig
from ctr.data.feature_tables import frozen_tables
from ctr.model.click_model import ClickModel
from ctr.training.train_step import TrainStep
from features.build.build import build_feature_set
from features.contract.contract import Contract
from features.store.feature_set import FeatureSet

HISTORY_LEN = 6
GENRES = ("drama", "comedy", "crime")


def random_model(feature_set: FeatureSet, config: ModelConfig, seed: int = 0) -> ClickModel:
    """In eval mode, tables attached; every parameter away from its start, so that every part shows in a score."""
    torch.manual_seed(seed)
    model = ClickModel(config, feature_set.schema)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # A wide sum of pieces of numbers adds up.
            spread = 0.15 / math.sqrt(24) if "numeric" in name else 0.15
            parameter.add_(spread * torch.randn_like(parameter))
            if "tables" in name:
                parameter[0].zero_()
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(std=0.1)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 2)
    plant_trees(model, seed)
    model.attach(frozen_tables(feature_set))
    return model.eval()


def plant_trees(model: ClickModel, seed: int = 0) -> None:
    """Give a model random trees, where it has any: each asks two features of a row, drawn at random."""
    if model.trees is None:
        return
    draw, trees = np.random.default_rng(seed), min(model.config.trees, 40)
    names = ("value", "feature_idx", "num_threshold", "missing_go_to_left", "left", "right", "is_leaf")
    dtype = list(zip(names, ("<f8", "<i8", "<f8", "u1", "<u4", "<u4", "u1"), strict=True))
    grown = []
    for _ in range(trees):
        nodes = np.zeros(5, dtype)
        nodes["feature_idx"] = draw.integers(model.trees.features.width, size=5)
        nodes["num_threshold"] = draw.choice([0.5, -0.25, 0.1], size=5) + 0.01 * draw.normal(size=5)
        nodes["missing_go_to_left"] = draw.integers(2, size=5)
        nodes["value"] = 0.3 * draw.normal(size=5)
        nodes["is_leaf"] = [0, 1, 0, 1, 1]
        nodes["left"], nodes["right"] = [1, 0, 3, 0, 0], [2, 0, 4, 0, 0]
        grown.append(nodes)
    model.trees.ensemble.set(grown, baseline=-0.4)
    if not model.trees.alone:
        model.trees.share.fill_(0.375)


def raw_contract(root: Path) -> Contract:
    """Whole numbers for items, text for users, every semantic type, and a default for one context column."""
    return Contract.model_validate(
        {
            "name": "shop",
            "root": str(root),
            "interactions": {
                "path": "log.parquet",
                "user": "user",
                "item": "item",
                "time": "time",
                "label": "clicked",
                "labels": {"like": "load > 3", "stay": "load > 5"},
                "allow_label_features": ["load"],
                "context": {
                    "device": {"type": "categorical", "default": "phone"},
                    "load": {"type": "numeric", "transform": "log1p"},
                },
            },
            "items": {
                "path": "items.parquet",
                "id": "item_id",
                "columns": {
                    "genre": {"type": "categorical"},
                    "tags": {"type": "tags", "max_len": 3},
                    "price": {"type": "numeric"},
                },
            },
            "users": {
                "path": "users.parquet",
                "id": "user_id",
                "columns": {"segment": {"type": "categorical"}, "age": {"type": "numeric"}},
            },
            "embeddings": {"text": {"path": "text.parquet", "id": "item_id"}},
            "checks": {"earliest": "1970-01-01"},
            "counters": {
                "item_rate": {"of": "item", "value": "rate"},
                "item_count": {"of": "item", "value": "count", "as_of": "hour"},
                "user_rate": {"of": "user", "value": "rate", "half_life": "3d"},
            },
            "history": {
                "max_len": HISTORY_LEN,
                "columns": {
                    "label": {"type": "categorical"},
                    "residual": {"type": "residual", "counter": "item_rate"},
                    "pause": {"type": "gap"},
                },
            },
        }
    )


def built_feature_set(folder: Path, rows: int = 600, users: int = 20, items: int = 40) -> FeatureSet:
    """Write the raw log below `folder/raw` and build its feature set."""
    raw = folder / "raw"
    raw.mkdir()
    draw = np.random.default_rng(0)
    pl.DataFrame(
        {
            "user": [f"u{user}" for user in draw.integers(users, size=rows)],
            "item": 100 + draw.integers(items, size=rows),
            "time": np.sort(draw.integers(10**6, size=rows)),
            "clicked": draw.integers(2, size=rows),
            "device": draw.choice(["phone", "desk", "tv"], size=rows),
            "load": draw.exponential(3, size=rows),
        }
    ).write_parquet(raw / "log.parquet")
    pl.DataFrame(
        {
            "item_id": 100 + np.arange(items),
            "genre": draw.choice(GENRES, size=items),
            "tags": [draw.choice(["new", "old", "loud", "calm"], size=i % 4).tolist() for i in range(items)],
            "price": [None if i % 5 == 0 else price for i, price in enumerate(draw.normal(10, 2, items))],
        }
    ).write_parquet(raw / "items.parquet")
    pl.DataFrame(
        {
            "user_id": [f"u{user}" for user in range(users)],
            "segment": draw.choice(["a", "b"], size=users),
            "age": draw.integers(18, 80, size=users),
        }
    ).write_parquet(raw / "users.parquet")
    pl.DataFrame(
        {"item_id": 100 + np.arange(items - 5), "vector": draw.normal(size=(items - 5, 8)).astype(np.float32)}
    ).write_parquet(raw / "text.parquet")
    return build_feature_set(raw_contract(raw), folder / "feature_sets").feature_set


def at_step(patch: pytest.MonkeyPatch, number: int, does: Callable[[], object]) -> None:
    """Do something before step `number` (from 0) of a training."""
    take_step = TrainStep.__call__

    def step(self: TrainStep, batches: Any, rate: float, done: int) -> Any:
        if done == number:
            does()
        return take_step(self, batches, rate, done)

    patch.setattr(TrainStep, "__call__", step)
