"""A small drawn log whose counters have every kind of key and value, and what each must be, by loops over its rows."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from features.contract.contract import Contract
from features.contract.log import Counter
from tests.features.counter_state import CounterState

DAY, HOUR, MINUTE = 86_400, 3_600, 60  # seconds
START = int(datetime(2026, 3, 1, tzinfo=UTC).timestamp())
DAYS = 6
Row = dict[str, Any]
COUNTERS: dict[str, Any] = {
    "shown": {"of": "item", "value": "count", "half_life": ["2h", "1d"]},
    "liked": {"of": "item", "value": "rate", "label": "likes", "prior": 2},
    "age": {"of": "item", "value": "age", "as_of": "hour"},
    "kind_rate": {"of": "kind", "value": "rate", "half_life": "6h"},
    "device_rate": {"of": "device", "value": "rate", "as_of": "day", "prior": 4},
    "country_count": {"of": ["country"], "value": "count", "as_of": "hour"},
    "user_since": {"of": "user", "value": "since"},
    "user_kind": {"of": ["user", "kind"], "value": "mean", "number": "read"},
    "item_hour": {"of": ["item", "hour"], "value": "rate", "as_of": "hour", "half_life": "1d"},
    "user_item": {"of": ["user", "item"], "value": "age"},
    "user_device": {"of": ["user", "device"], "value": "sum", "number": "read * 2", "half_life": "6h"},
    "where": {"of": ["country", "device", "kind"], "value": "since", "as_of": "hour"},
    "clicks": {"of": ["user", "kind"], "value": "sum", "number": "label"},
}
ITEMS = {100 + i: ["news", "sport", None, "film"][i % 4] for i in range(8)}
USERS = {"abcdef"[i]: ["dk", "se", "dk"][i % 3] for i in range(6)}


def draw_log(seed: int, requests: int = 90) -> list[Row]:
    """Requests of one to four items, a minute apart; several begin at the same instant, some labels are unknown."""
    rng = np.random.default_rng(seed)
    rows = []
    for request in range(requests):
        begins = START + int(rng.integers(0, DAYS * 72)) * 20 * MINUTE if request else START
        device = [None, "phone", "desk", "tv"][int(rng.integers(4))] if request > 8 else "phone"
        user = "abcdef"[int(rng.integers(6))]
        for place, item in enumerate(rng.permutation(list(ITEMS))[: int(rng.integers(1, 5))].tolist()):
            rows.append(
                {
                    "user": user,
                    "item": item,
                    "time": begins + place * MINUTE,
                    "request": request,
                    "device": device,
                    "clicked": int(rng.integers(2)),
                    "liked": None if rng.random() < 0.4 else int(rng.integers(2)),
                    "read": None if rng.random() < 0.4 else float(rng.integers(-3, 9)),
                }
            )
    # Every day has rows, and the first all devices.
    for day in range(DAYS):
        for number, device in enumerate(["phone", "desk", "tv"]):
            row = {
                "user": "a",
                "item": 100 + day,
                "time": START + day * DAY + number * 7,
                "request": 1000 + 3 * day + number,
            }
            rows.append(row | {"device": device, "clicked": number % 2, "liked": 1, "read": 1.0})
    return rows


def write(folder: Path, rows: list[Row]) -> None:
    """The log, a file a day, and both tables."""
    (folder / "log").mkdir(parents=True, exist_ok=True)
    types = {"device": pl.String, "liked": pl.Int64, "read": pl.Float64}
    for day in range(DAYS):
        of_day = [row for row in rows if (row["time"] - START) // DAY == day]
        pl.DataFrame(of_day, schema_overrides=types).write_parquet(folder / "log" / f"{day}.parquet")
    pl.DataFrame({"item": list(ITEMS), "kind": list(ITEMS.values())}).write_parquet(folder / "items.parquet")
    pl.DataFrame({"user": list(USERS), "country": list(USERS.values())}).write_parquet(folder / "users.parquet")


def contract(folder: Path, counters: dict[str, Any] | None = None, **changes: Any) -> Contract:
    """What reads it."""
    category = {"type": "categorical"}
    content = {
        "name": "rich",
        "root": str(folder),
        "interactions": {
            "path": "log/*.parquet",
            "user": "user",
            "item": "item",
            "time": "time",
            "request": "request",
            "label": "clicked",
            "labels": {"likes": "liked"},
            "context": {"device": category, "hour": {"type": "date", "part": "hour", "source": "time"}},
        },
        "items": {"path": "items.parquet", "id": "item", "columns": {"kind": category}},
        "users": {"path": "users.parquet", "id": "user", "columns": {"country": category}},
        "counters": COUNTERS if counters is None else counters,
        "split": {"by": "days", "valid": 1, "test": 1},
    }
    return Contract.model_validate(content | changes)


def instants(rows: list[Row]) -> list[int]:
    """As of when each row knows the past, µs: the earliest time of its user's request."""
    first: dict[Any, int] = {}
    for row in rows:
        key = row["user"], row["request"]
        first[key] = min(first.get(key, row["time"]), row["time"])
    return [first[row["user"], row["request"]] * 1_000_000 for row in rows]


PARTS: dict[str, Callable[[Row], Any]] = {
    "user": lambda row: row["user"],
    "item": lambda row: row["item"],
    "kind": lambda row: ITEMS.get(row["item"]),
    "country": lambda row: USERS.get(row["user"], "unknown"),
    "device": lambda row: row["device"],
    "hour": lambda row: row["time"] // HOUR % 24,
}


def counted(rows: list[Row], counter: Counter, mean: float) -> CounterState:
    """A counter after all of these rows."""
    state = CounterState(counter, mean)
    for row in sorted(rows, key=lambda row: int(row["time"])):
        amounts = {None: row["clicked"], "likes": row["liked"]}[counter.label], row["read"]
        amount = amounts[0]
        if counter.number is not None:
            amount = {"read": row["read"], "read * 2": (row["read"] or 0) * 2, "label": row["clicked"]}[counter.number]
            amount = None if "read" in counter.number and row["read"] is None else amount
        state.update(key_of(row, counter), row["time"] * 1_000_000, np.nan if amount is None else float(amount))
    return state


def key_of(row: Row, counter: Counter) -> tuple[Any, ...]:
    """The key of a row, raw; all missing values are one."""
    return tuple(PARTS[key](row) for key in counter.keys)


def means(rows: list[Row]) -> dict[str | None, float]:
    """Of the label (None) and of the further one over the training days: all but two."""
    train = [row for row in rows if row["time"] < START + (DAYS - 2) * DAY]
    liked = [row["liked"] for row in train if row["liked"] is not None]
    return {None: float(np.mean([row["clicked"] for row in train])), "likes": float(np.mean(liked))}
