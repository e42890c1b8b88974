"""Holds the pandas peer to our feature set: a speed is compared only between builds that say the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from features.encoding.encoder import Encoder
from features.store.feature_set import SPLITS, FeatureSet, SplitName
from features.store.schema import FIRST_VALUE

MOST_ROWS = 20_000  # compared of each split, evenly spread

CONTEXT = ("hour", "device", "position")
ITEM = {"item_index": "item_id", "category": "category", "price": "price"}
USER = {"user_index": "user_id", "age_group": "age_group", "country": "country"}
PRICE_ERROR = 1e-5  # of a standardised float32
VECTOR_ERROR = 1e-6


def compare(ours: str, theirs: str, raw: str) -> int:
    """Rows that were compared, all of them equal.

    Args:
        ours: folder of the feature set, or of its versions.
        theirs: folder that `pandas_features.build` wrote.
        raw: of the simulated log.

    Raises:
        ValueError: they differ; names split, column and an example.
    """
    feature_set = FeatureSet.open(Path(ours))
    items = np.sort(pq.read_table(Path(raw) / "items.parquet", columns=["item_id"])["item_id"].to_numpy())
    compared = sum(_compare_split(feature_set, name, Path(theirs), items) for name in SPLITS)
    for name in feature_set.contract.embeddings:
        mine_IW, their_IW = feature_set.vectors(name)[FIRST_VALUE:], np.load(Path(theirs) / f"{name}.npy")
        close_I = np.isclose(mine_IW, their_IW, rtol=0, atol=VECTOR_ERROR).all(axis=1)
        _agree("items", name, close_I, their_IW, mine_IW)
    return compared


def _compare_split(feature_set: FeatureSet, split: SplitName, theirs: Path, items: np.ndarray) -> int:
    table = pq.read_table(theirs / f"{split}.parquet")
    mine = _sorted_rows(feature_set, split)
    if len(table) != len(mine["user"]):
        raise ValueError(f"{split}: {len(mine['user'])} rows of ours, {len(table)} of theirs")
    chosen = np.arange(0, len(table), -(-len(table) // MOST_ROWS))
    table, mine = table.take(chosen), {name: values[chosen] for name, values in mine.items()}
    encoder = Encoder.load(feature_set.path)
    users_V, items_V = (one.values.to_numpy() for one in (encoder.users, encoder.items))
    expected: dict[str, Any] = {
        "user_id": users_V[mine["user"] - FIRST_VALUE],
        "item_id": items_V[mine["item"] - FIRST_VALUE],
        "timestamp": mine["time"],
        "label": mine["label"],
        **{name: mine[name] for name in CONTEXT},
        **{column: feature_set.items[name][mine["item"]] for column, name in ITEM.items()},
        **{column: feature_set.users[name][mine["user"]] for column, name in USER.items()},
    }
    for name, values in expected.items():
        # A timestamp's int64 is µs, as our times are; numpy's own would compare as dates.
        found = (table[name].cast("int64") if name == "timestamp" else table[name]).to_numpy()
        error = PRICE_ERROR if name == "price" else 0.0
        _agree(split, name, np.isclose(found, values, rtol=0.0, atol=error, equal_nan=True), found, values)
    tags_RM = feature_set.items["tags"][mine["item"]]
    known = [tags[tags >= FIRST_VALUE].tolist() for tags in tags_RM]
    _agree_lists(split, "tags", known, table["tags"].to_pylist())
    # By raw ids: each side's indices through its own list of items.
    shown = [items_V[some - FIRST_VALUE].tolist() for some in _histories(feature_set, split, mine, "item")]
    theirs_shown = [items[np.array(some, int) - FIRST_VALUE].tolist() for some in table["history_item"].to_pylist()]
    _agree_lists(split, "history_item", shown, theirs_shown)
    clicked = [some.tolist() for some in _histories(feature_set, split, mine, "clicked")]
    _agree_lists(split, "history_clicked", clicked, table["history_clicked"].to_pylist())
    return len(chosen)


def _sorted_rows(feature_set: FeatureSet, split: SplitName) -> dict[str, np.ndarray]:
    """A split's rows by user and time over all parts; `part` tells where their histories lie."""
    parts = feature_set.rows(split)
    rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    rows["part"] = np.repeat(np.arange(len(parts)), [len(part["user"]) for part in parts])
    order = np.lexsort((rows["time"], rows["user"]))
    return {name: values[order] for name, values in rows.items()}


def _histories(feature_set: FeatureSet, split: SplitName, rows: dict[str, np.ndarray], column: str) -> list[np.ndarray]:
    events = feature_set.events(split)
    spans = zip(rows["part"], rows["history_end"], rows["history_len"], strict=True)
    return [events[part][column][end - length : end] for part, end, length in spans]


def _agree_lists(split: str, name: str, ours: list[list[int]], theirs: list[list[int]]) -> None:
    same = np.array([mine == other for mine, other in zip(ours, theirs, strict=True)])
    _agree(split, name, same, theirs, ours)


def _agree(split: str, name: str, same: np.ndarray, theirs: Any, ours: Any) -> None:
    if not same.all():
        at = int(np.argmin(same))
        wrong = f"{int((~same).sum())} of {len(same)} rows differ"
        raise ValueError(f"{split}: {name}: {wrong}, e.g. ours {ours[at]}, theirs {theirs[at]}")
