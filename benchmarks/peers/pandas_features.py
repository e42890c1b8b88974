"""The peers of the feature build: what one would write in pandas for the same features of the simulated log.

Tables are merged onto the log, values are mapped to indices learned from the training rows, and a loop over users
puts the list of earlier events into each row: first in pandas alone (`build`), then with numpy inside the loop
(`build_with_numpy`). Neither checks or hashes anything, and both hold everything in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped]

VALID, TEST = 0.1, 0.1
MIN_COUNT = 2  # training rows below which an id is unknown
MAX_TAGS = 5
UNKNOWN, FIRST_VALUE = 1, 2
SPLITS = ("train", "valid", "test")

HistoriesOf = Callable[[pd.DataFrame, int], tuple[Any, Any]]


def build(raw: str, out: str, max_len: int) -> dict[str, int]:
    """Pandas all the way: `groupby.apply`, and `iloc` for each row's history."""
    return _build(raw, out, max_len, histories)


def build_with_numpy(raw: str, out: str, max_len: int) -> dict[str, int]:
    """The same after a look at a profile: the loop over users slices numpy arrays."""
    return _build(raw, out, max_len, histories_with_numpy)


def _build(raw: str, out: str, max_len: int, histories_of: HistoriesOf) -> dict[str, int]:
    """Write `train`, `valid` and `test.parquet` and the aligned vectors; returns the rows of each split."""
    source, target = Path(raw), Path(out)
    target.mkdir(parents=True)
    log = pd.read_parquet(source / "interactions.parquet")
    times = log["timestamp"].sort_values(ignore_index=True)
    bounds = [times[int(len(log) * share)] for share in (1 - TEST - VALID, 1 - TEST)]
    train = log[log["timestamp"] < bounds[0]]

    items = item_features(pd.read_parquet(source / "items.parquet"), train)
    users = user_features(pd.read_parquet(source / "users.parquet"), train)
    log = log.merge(items, on="item_id", how="left").merge(users, on="user_id", how="left")
    for name in ("hour", "device", "position"):
        log[name] = encoded(log[name], train[name])
    log["label"] = log["clicked"].astype("float32")
    log["clicked"] = encoded(log["clicked"], train["clicked"])

    log = log.sort_values(["user_id", "timestamp"], kind="stable", ignore_index=True)
    log["history_item"], log["history_clicked"] = histories_of(log, max_len)
    split = np.searchsorted(pd.Series(bounds), log["timestamp"], side="right")
    rows = {}
    for number, name in enumerate(SPLITS):
        chosen = log[split == number]
        chosen.to_parquet(target / f"{name}.parquet", index=False)
        rows[name] = len(chosen)
    for name in ("text", "image"):
        np.save(target / f"{name}.npy", aligned(pd.read_parquet(source / f"{name}.parquet"), items))
    return rows


def encoded(values: pd.Series, fitted_on: pd.Series, min_count: int = 1) -> pd.Series:
    """Values as indices: those seen often enough in training from 2 on, in sorted order; all others 1."""
    counts = fitted_on.value_counts()
    known = sorted(counts.index[counts >= min_count])
    index = {value: place for place, value in enumerate(known, start=FIRST_VALUE)}
    return values.map(index).fillna(UNKNOWN).astype("int32")


def item_features(items: pd.DataFrame, train: pd.DataFrame) -> pd.DataFrame:
    """The item table, a row an item in order of ids, encoded by what training saw of it."""
    items = items.sort_values("item_id", ignore_index=True)
    seen = items[items["item_id"].isin(train["item_id"])]
    tags = sorted(set(seen["tags"].explode().dropna()))
    index = {tag: place for place, tag in enumerate(tags, start=FIRST_VALUE)}
    price = np.log1p(items["price"])
    seen_price = price[seen.index]
    return pd.DataFrame(
        {
            "item_id": items["item_id"],
            "item": np.arange(len(items), dtype="int32") + FIRST_VALUE,
            "item_index": encoded(items["item_id"], train["item_id"], MIN_COUNT),
            "category": encoded(items["category"], seen["category"]),
            "tags": [[index[tag] for tag in some if tag in index][:MAX_TAGS] for some in items["tags"]],
            "price": ((price - seen_price.mean()) / seen_price.std(ddof=0)).astype("float32"),
        }
    )


def user_features(users: pd.DataFrame, train: pd.DataFrame) -> pd.DataFrame:
    """The user table, encoded by what training saw of it."""
    seen = users[users["user_id"].isin(train["user_id"])]
    return pd.DataFrame(
        {
            "user_id": users["user_id"],
            "user_index": encoded(users["user_id"], train["user_id"], MIN_COUNT),
            "age_group": encoded(users["age_group"], seen["age_group"]),
            "country": encoded(users["country"], seen["country"]),
        }
    )


def histories(log: pd.DataFrame, max_len: int) -> tuple[pd.Series, pd.Series]:
    """Items and clicks of the newest `max_len` events strictly before each row; the log is sorted by user and time."""

    def of_user(user: pd.DataFrame) -> pd.DataFrame:
        ends = user["timestamp"].searchsorted(user["timestamp"], side="left")
        lists = {
            name: [user[name].iloc[max(0, end - max_len) : end].tolist() for end in ends]
            for name in ("item", "clicked")
        }
        return pd.DataFrame(lists, index=user.index)

    grouped = log.groupby("user_id", sort=False, group_keys=False)[["timestamp", "item", "clicked"]]
    lists = grouped.apply(of_user)
    return lists["item"], lists["clicked"]


def histories_with_numpy(log: pd.DataFrame, max_len: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """As `histories`."""
    item_lists: list[np.ndarray] = []
    click_lists: list[np.ndarray] = []
    for _, user in log.groupby("user_id", sort=False):
        times, items, clicked = (user[name].to_numpy() for name in ("timestamp", "item", "clicked"))
        for end in np.searchsorted(times, times, side="left"):
            start = max(0, end - max_len)
            item_lists.append(items[start:end])
            click_lists.append(clicked[start:end])
    return item_lists, click_lists


def aligned(vectors: pd.DataFrame, items: pd.DataFrame) -> np.ndarray:
    """Vectors of length one in the order of the items, zeros where an item has none."""
    known_VW = np.stack(vectors["vector"].to_numpy())
    known_VW /= np.linalg.norm(known_VW, axis=1, keepdims=True)
    place = pd.Series(np.arange(len(vectors)), index=vectors["item_id"]).reindex(items["item_id"])
    aligned_IW = np.zeros((len(items), known_VW.shape[1]), np.float32)
    aligned_IW[place.notna().to_numpy()] = known_VW[place.dropna().astype(int)]
    return aligned_IW
