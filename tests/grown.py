"""Two small feature sets of one contract, the second of a later day: more items and users, renumbered, other scales."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from features.build.build import build_feature_set
from features.contract.contract import Contract
from features.contract.settings import merge
from features.store.feature_set import FeatureSet

DAY = 86_400
# Item ids of each log. The second has one below all others, so that every index moves, and lacks the first ones.
ITEMS = (range(100, 130), range(95, 142))
WIDTH = 4

CONTENT: dict[str, Any] = {
    "name": "grown",
    "interactions": {
        "path": "log.parquet",
        "user": "user",
        "item": "item",
        "time": "time",
        "label": "clicked",
        "context": {
            "device": {"type": "categorical"},
            "load": {"type": "numeric"},
            "depth": {"type": "buckets", "count": 4},
        },
    },
    "items": {
        "path": "items.parquet",
        "id": "item",
        "columns": {
            "genre": {"type": "categorical"},
            "tags": {"type": "tags", "max_len": 2},
            "price": {"type": "numeric"},
        },
    },
    "embeddings": {"text": {"path": "text.parquet", "id": "item", "normalize": "none"}},
    "checks": {"earliest": "1970-01-01"},
    "counters": {"item_rate": {"of": "item", "value": "rate"}},
    "history": {
        "max_len": 5,
        "columns": {"label": {"type": "categorical"}, "residual": {"type": "residual", "counter": "item_rate"}},
    },
}


def vector_of(item: int) -> list[float]:
    """What the encoder says of an item, whatever day it is."""
    drawn: list[float] = np.random.default_rng(item).normal(size=WIDTH).round(4).tolist()
    return drawn


def grown_feature_set(folder: Path, day: int, over: Any = None, rows: int = 500) -> FeatureSet:
    """The feature set of the log up to day 1 or 2, with all raw files below `folder/raw-<day>`."""
    raw = folder / f"raw-{day}"
    raw.mkdir(parents=True)
    items = np.array(ITEMS[day - 1])
    parts = [_rows(number, ITEMS[number - 1], rows) for number in range(1, day + 1)]
    pl.concat(parts).write_parquet(raw / "log.parquet")
    pl.DataFrame(
        {
            "item": items,
            "genre": [("drama", "noir", "jazz", "anime")[item % (2 + day)] for item in items.tolist()],
            "tags": [[("new", "old", "calm")[item % 3]] for item in items.tolist()],
            "price": [float(item % 7) for item in items.tolist()],
        }
    ).write_parquet(raw / "items.parquet")
    # The last two items have no vector.
    with_vector = items[:-2].tolist()
    pl.DataFrame({"item": with_vector, "vector": [vector_of(item) for item in with_vector]}).write_parquet(
        raw / "text.parquet"
    )
    contract = Contract.model_validate(merge(CONTENT, over or {}) | {"root": str(raw)})
    return build_feature_set(contract, folder / "feature_sets").feature_set


def _rows(day: int, items: range, rows: int) -> pl.DataFrame:
    draw = np.random.default_rng(day)
    item = draw.choice(np.array(items[3 * (day - 1) :]), rows)
    return pl.DataFrame(
        {
            "user": draw.integers(0, 15 + 5 * day, rows),
            "item": item,
            "time": day * DAY + np.sort(draw.integers(0, DAY, rows)),
            "clicked": (draw.random(rows) < np.where(item % 2, 0.7, 0.2)).astype(np.int8),
            "device": draw.choice(["phone", "desk", f"watch-{day}"], rows),
            "load": draw.normal(2 * day, day, rows),
            "depth": draw.integers(1, 8 * day, rows),
        }
    )
