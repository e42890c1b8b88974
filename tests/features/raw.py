"""A tiny raw log on disk, changed at will by each test: what users bring, before the pipeline has seen it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from features.contract.contract import Contract
from features.contract.settings import merge, validate
from features.encoding.encoder import Encoder
from features.store.feature_set import SPLITS, FeatureSet

Tables = dict[str, pl.DataFrame]
ROWS, USERS, ITEMS, WIDTH = 120, 8, 12, 4
START = 1_700_000_000
CONTENT: dict[str, Any] = {
    "name": "raw",
    "interactions": {
        "path": "log.parquet",
        "user": "user_id",
        "item": "item_id",
        "time": "time",
        "label": "rating >= 4",
        "context": {"hour": {"type": "categorical"}, "load": {"type": "numeric"}},
    },
    "items": {
        "path": "items.parquet",
        "id": "item_id",
        "columns": {
            "genre": {"type": "categorical"},
            "tags": {"type": "tags", "max_len": 2},
            "price": {"type": "numeric", "transform": "log1p"},
        },
    },
    "users": {"path": "users.parquet", "id": "user_id", "columns": {"segment": {"type": "categorical"}}},
    "embeddings": {"text": {"path": "text.parquet"}},
    "history": {"max_len": 5, "columns": {"rating": {"type": "categorical"}}},
    "split": {"valid": 0.1, "test": 0.2},
}


def make_tables() -> Tables:
    """A log with many ties (three rows an instant), and the tables of its users and items."""
    rng = np.random.default_rng(0)
    item, user = np.arange(101, 101 + ITEMS), np.arange(1, 1 + USERS)
    time = START + np.arange(ROWS) // 3 * 60
    log = pl.DataFrame(
        {
            "user_id": rng.choice(user, ROWS),
            "item_id": rng.choice(item, ROWS),
            "time": time,
            "rating": rng.integers(1, 6, ROWS),
            "hour": time // 60 % 24,
            "load": rng.random(ROWS),
        }
    )
    items = pl.DataFrame(
        {
            "item_id": item,
            "genre": [("drama", "comedy", "noir")[i % 3] for i in range(ITEMS)],
            "tags": [["a", "b", "c"][: i % 4] for i in range(ITEMS)],
            "price": [None if i == 5 else float(i) for i in range(ITEMS)],
        }
    )
    users = pl.DataFrame({"user_id": user, "segment": [f"s{i % 3}" for i in range(USERS)]})
    return {"log": log, "items": items, "users": users, "text": vectors_of(item)}


def vectors_of(ids: Any, seed: int = 1) -> pl.DataFrame:
    """Random vectors for these item ids."""
    values = np.random.default_rng(seed).normal(size=(len(ids), WIDTH)).astype(np.float32)
    return pl.DataFrame({"item_id": ids, "vector": values.tolist()})


def write_tables(folder: Path, tables: Tables) -> None:
    """One parquet file a table."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        table.write_parquet(folder / f"{name}.parquet")


def raw_log(folder: Path, change: Callable[[Tables], object] | None = None, over: Any = None) -> Contract:
    """Write the raw files into `folder` and return their contract.

    Args:
        folder: where to.
        change: alters the tables before they are written.
        over: laid on top of the contract; a section of None is taken out.
    """
    tables = make_tables()
    if change is not None:
        change(tables)
    write_tables(folder, tables)
    return validate(Contract, merge(CONTENT, over or {}) | {"root": str(folder)}, "raw")


def decoded_rows(built: FeatureSet) -> list[dict[str, Any]]:
    """Every row with raw ids and its history spelled out: what the feature set says, without its numbering."""
    encoder = Encoder.load(built.path)
    features = [field.name for field in built.schema.context]
    decoded = []
    for split in SPLITS:
        for rows, events in zip(built.rows(split), built.events(split), strict=True):
            for i in range(len(rows["user"])):
                end, length = int(rows["history_end"][i]), int(rows["history_len"][i])
                past = slice(end - length, end)
                decoded.append(
                    {
                        "split": split,
                        "user": encoder.users.value(rows["user"][i]),
                        "item": encoder.items.value(rows["item"][i]),
                        "time": int(rows["time"][i]),
                        "label": float(rows["label"][i]),
                        **{name: rows[name][i].item() for name in features},
                        "history": [encoder.items.value(row) for row in events["item"][past]],
                        **{f"history.{field.name}": events[field.name][past].tolist() for field in built.schema.event},
                    }
                )
    return decoded


def in_order(rows: list[dict[str, Any]]) -> list[str]:
    """Rows as a multiset that can be compared: sorted, as text (NaN equals NaN)."""
    return sorted(map(repr, rows))
