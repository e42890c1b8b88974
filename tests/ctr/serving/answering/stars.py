"""A small feature set with counters of every kind, built without a model, in place of a bundle."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl

from features.build.build import build_feature_set
from features.contract.contract import Contract
from features.encoding.encoder import Encoder
from features.store.feature_set import FeatureSet

START = datetime(2026, 1, 1)
MICROS = int((START - datetime(1970, 1, 1)).total_seconds()) * 1_000_000
COUNTERS: dict[str, Any] = {
    "rate": {"of": "item", "value": "rate", "half_life": "1h"},
    "shown": {"of": "item", "value": "count", "as_of": "hour"},
    "active": {"of": "user", "value": "count"},
}
COLUMNS: dict[str, Any] = {
    "label": {"type": "categorical"},
    "residual": {"type": "residual", "counter": "rate"},
    "depth": {"type": "numeric"},
}


def stars_contract(folder: Path, **log: Any) -> Contract:
    interactions = {"path": "log.parquet", "user": "who", "item": "what", "time": "at", "label": "stars >= 4", **log}
    history = {"max_len": 3, "columns": COLUMNS, "events": "depth > 0"}
    content = {"name": "stars", "root": str(folder), "interactions": interactions}
    return Contract.model_validate(content | {"history": history, "counters": COUNTERS})


def stars_log(rows: int = 120) -> pl.DataFrame:
    """One row a minute from 1 January 2026 on: users a to e, items 100 to 111."""
    return pl.DataFrame(
        {
            "who": ["abcde"[i % 5] for i in range(rows)],
            "what": [100 + i * 7 % 12 for i in range(rows)],
            "at": [START + timedelta(minutes=i) for i in range(rows)],
            "stars": [i % 6 for i in range(rows)],
            "depth": [float(i % 4) for i in range(rows)],
        }
    )


def built(folder: Path, log: pl.DataFrame | None = None) -> FeatureSet:
    folder.mkdir(exist_ok=True)
    (stars_log() if log is None else log).write_parquet(folder / "log.parquet")
    return build_feature_set(stars_contract(folder), folder / "out").feature_set


def as_ranker(feature_set: FeatureSet) -> Any:
    """What live counters use of a ranker."""
    manifest = SimpleNamespace(windows=feature_set.manifest.windows)
    bundle = SimpleNamespace(path=feature_set.path, manifest=manifest)
    encoder = Encoder.load(feature_set.path)
    return SimpleNamespace(encoder=encoder, counters=encoder.snapshot, bundle=bundle)


def values(ranker: Any) -> dict[str, np.ndarray]:
    snapshot = ranker.counters
    return {**snapshot.items, **snapshot.users}
