"""Requests of a client that knows all that the raw log of the shop holds, and nothing later; served and logged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ctr.serving.answering.answers import answer
from ctr.serving.ranker import Ranker
from ctr.serving.server.served_log import ServedLog
from ctr.serving.settings import LogSettings
from features.encoding.request import Limits
from features.store.feature_set import FeatureSet
from tests.features.counter_state import CounterState

SECOND = 1_000_000


def raw_of(feature_set: FeatureSet) -> Path:
    """Folder of the raw tables that the shop's feature set was built from; the bundle does not say."""
    return Path(feature_set.path).parents[2] / "raw"


def counter_at(ranker: Ranker, log: pl.DataFrame, name: str, key: Any, second: int) -> float:
    """A counter of one key at a second, counted in plain Python."""
    counter = ranker.encoder.contract.counters[name]
    state = CounterState(counter, ranker.counters.mean)
    mine = log.filter((pl.col(counter.of) == key) & (pl.col("time") < second)).sort("time")
    for time, label in mine.select("time", "clicked").iter_rows():
        state.update(key, time * SECOND, label)
    return float(state.value(key, second * SECOND))


def perfect(ranker: Ranker, log: pl.DataFrame, user: str, second: int, items: list[int], name: str) -> dict[str, Any]:
    """A request at a second, which sends the user's whole log and all counters as they were."""
    past = log.filter((pl.col("user") == user) & (pl.col("time") < second))
    return {
        "id": name,
        "user": user,
        "time": second,
        "context": {
            "device": "tv",
            "load": float(second % 7),
            "user_rate": counter_at(ranker, log, "user_rate", user, second),
        },
        "history": [
            {
                "item": item,
                "time": time,
                "clicked": clicked,
                "item_rate": counter_at(ranker, log, "item_rate", item, time),
            }
            for item, time, clicked in past.select("item", "time", "clicked").iter_rows()
        ],
        "candidates": [
            {"item": item} | {one: counter_at(ranker, log, one, item, second) for one in ("item_rate", "item_count")}
            for item in items
        ],
    }


def serve(ranker: Ranker, requests: list[dict[str, Any]], folder: Path, **settings: Any) -> pl.DataFrame:
    """Answer and log requests; returns what was logged, by time."""
    log = ServedLog(LogSettings(folder=folder, **settings))
    for request in requests:
        log.add(answer(ranker, json.dumps(request).encode(), Limits()))
    log.close()
    return pl.read_parquet(folder / "served-*.parquet").sort("time")


def some_requests(
    ranker: Ranker, log: pl.DataFrame, count: int, first: int = 900_000, step: int = 2_000
) -> list[dict[str, Any]]:
    """Requests within and behind the log, of five candidates each, the last of them unknown to the bundle."""
    draw = np.random.default_rng(0)
    return [
        perfect(
            ranker,
            log,
            f"u{draw.integers(20)}",
            first + step * i,
            [*(100 + draw.permutation(40)[:4]).tolist(), 140 + i % 40],
            f"r{i}",
        )
        for i in range(count)
    ]
