"""A log of days, its contract, and builds of some of its days."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from features.build.build import build_feature_set
from features.contract.contract import Contract
from features.contract.settings import merge, validate
from features.store.feature_set import FeatureSet
from tests.features.decoded import assert_same_rows, decoded

FIRST = date(2026, 3, 1)


CONTENT: dict[str, Any] = {
    "name": "daily",
    "interactions": {
        "path": "log/*.parquet",
        "user": "user",
        "item": "item",
        "time": "time",
        "label": "rating >= 4",
        "item_min_count": 1,
        "user_min_count": 1,
        "context": {"device": {"type": "categorical"}, "load": {"type": "numeric", "scale": "none"}},
    },
    "items": {"path": "items.parquet", "id": "item", "columns": {"genre": {"type": "categorical"}}},
    "history": {
        "max_len": 6,
        "columns": {"rating": {"type": "categorical"}, "pause": {"type": "gap"}},
    },
    "split": {"by": "days", "valid": 1, "test": 1},
}


def contract(folder: Path, over: Any = None) -> Contract:
    return validate(Contract, merge(CONTENT, over or {}) | {"root": str(folder)}, "daily.yaml")


def without_device(folder: Path, over: Any = None) -> Contract:
    """A device seen first on a later day is unknown in the parts of earlier days: two ways to build differ in it."""
    content = contract(folder, over).model_dump(exclude_unset=True)
    del content["interactions"]["context"]["device"]
    return Contract.model_validate(content)


def day_of_log(number: int, rows: int = 60) -> pl.DataFrame:
    """One day; later days bring new users, items and devices."""
    rng = np.random.default_rng(number)
    start = datetime(FIRST.year, FIRST.month, FIRST.day, tzinfo=UTC) + timedelta(days=number)
    return pl.DataFrame(
        {
            "user": rng.integers(0, 12 + number, rows),
            "item": rng.integers(100, 130 + 2 * number, rows),
            "time": int(start.timestamp()) + np.sort(rng.integers(0, 86_400, rows)) // 600 * 600,
            "rating": rng.integers(1, 6, rows),
            "device": rng.choice(["phone", "desk", f"watch{number // 3}"], rows),
            "load": rng.random(rows).round(3),
        }
    )


def write_days(folder: Path, days: range) -> None:
    (folder / "log").mkdir(parents=True, exist_ok=True)
    for number in days:
        day_of_log(number).write_parquet(folder / f"log/day-{number:02d}.parquet")
    items = np.arange(100, 130 + 2 * max(days))
    genres = [("drama", "noir", "jazz")[i % 3] for i in range(len(items))]
    pl.DataFrame({"item": items, "genre": genres}).write_parquet(folder / "items.parquet")


def build(declared: Contract, number: int, out: str = "out", window: int = 7) -> FeatureSet:
    as_of = (FIRST + timedelta(days=number)).isoformat()
    return build_feature_set(declared, Path(declared.root) / out, as_of=as_of, window=window).feature_set


def kept_files(before: FeatureSet, after: FeatureSet) -> set[str]:
    """Files of rows and events that are the earlier version's own."""
    data = {name for name in after.manifest.files if name.startswith(("rows/", "events/"))}
    old = {name for name in data if (before.path / name).is_file()}
    return {name for name in old if (before.path / name).stat().st_ino == (after.path / name).stat().st_ino}


def assert_equal(one: FeatureSet, other: FeatureSet) -> None:
    """By raw values: the numbering of categories and the scale of numbers depend on the way to build."""
    assert_same_rows(decoded(one), decoded(other))


COUNTED: dict[str, Any] = {
    "counters": {
        "item_rate": {"of": "item", "value": "rate", "prior": 3},
        "item_lately": {"of": "item", "value": "rate", "as_of": "hour", "half_life": "2d"},
        "user_count": {"of": "user", "value": "count", "as_of": "day"},
    },
    "history": {"columns": {"surprise": {"type": "residual", "counter": "item_rate"}}},
}
