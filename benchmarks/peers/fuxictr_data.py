"""A feature set's rows, histories and items in the form of FuxiCTR's loader for long histories.

The loader reads one table of items, for targets and for histories alike, and no column of an event. So the table has a
row for each item as a target and one for each distinct event: an item with what the event said of it. Event columns of
a target are unknown. A number that can be missing is two numbers wide, its value (0 if missing) and whether it is
missing; FuxiCTR takes it to an embedding by one linear layer, as it does other numbers. A vector set that some items
lack has such a flag behind its components.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.decomposition import PCA

from features.encoding.encoder import Encoder
from features.errors import ConfigError
from features.store.feature_set import SPLITS, FeatureSet, SplitName
from features.store.schema import PADDING, UNKNOWN, Field

DATASET = "rows"
FEATURE_MAP = "feature_map.json"  # written last
COMPONENTS = 32  # of each vector set: the loader copies an item's numbers to every position of a history

HISTORIES = ("all", "liked")  # the events that a history has


def write_data(feature_set: FeatureSet, history: str, out: Path) -> None:
    """Write the rows of each split, their histories and the items.

    `<split>.parquet` names a history of `<split>_histories.parquet`; both name items by rows of `items.parquet`.

    Args:
        feature_set: whose rows; a history has as many events as its own.
        history: one of `HISTORIES`. `liked` keeps the events whose label was above the item's rate, where the events
            tell (a residual column); `all` keeps all of them.
        out: folder that gets the files.

    Raises:
        ConfigError: a column is of a kind that FuxiCTR's loader does not take, or changes with time.
    """
    if feature_set.item_versions is not None or feature_set.user_versions is not None:
        raise ConfigError(
            f"{feature_set.path}: its item or user table has `valid_from`, and FuxiCTR's loader takes one row an item. "
            "Compare on a contract without it, or without peers."
        )
    schema = feature_set.schema
    row_fields = [*(("user", f) for f in schema.user), *(("row", f) for f in (*schema.context, *schema.candidate))]
    for field in [*(field for _, field in row_fields), *schema.event]:
        if field.kind == "tags":
            raise ConfigError(f"{field.name}: FuxiCTR's loader for histories takes no tags of users, rows or events.")
    out.mkdir(parents=True, exist_ok=True)
    events_UC, row_of_event = _distinct_events(feature_set)
    items, features = _items(feature_set, events_UC)
    pq.write_table(pa.table({name: _column(values) for name, values in items.items()}), out / "items.parquet")
    flagged = {_name(side, field) for side, field in row_fields if _can_be_missing(feature_set, side, field)}
    for side, field in row_fields:
        features[_name(side, field)] = _spec(field, "context", flagged=_name(side, field) in flagged)
    liked = _liked(feature_set) if history == "liked" else _every
    for split in SPLITS:
        columns = _rows(feature_set, split, row_fields, flagged)
        found = _histories(feature_set, split, row_of_event[split], liked)
        columns |= {"seq_len": np.array([len(one) for one in found]), "user_index": np.arange(len(found))}
        pq.write_table(pa.table({name: _column(values) for name, values in columns.items()}), out / f"{split}.parquet")
        pq.write_table(pa.table({"full_item_seq": pa.array(found)}), histories_of(out, split))
    meta = {name: {"type": "meta"} for name in ("user_index", "seq_len", "item_index")}
    described = [{name: one} for name, one in (meta | features).items()]
    content = {"dataset_id": DATASET, "labels": ["label"], "features": described}
    (out / FEATURE_MAP).write_text(json.dumps(content, indent=1), encoding="utf-8")


def _distinct_events(feature_set: FeatureSet) -> tuple[np.ndarray, dict[SplitName, list[np.ndarray]]]:
    """Distinct events as (item, event columns), float64 [U, 1 + C]; and the one of each event, by split and part."""
    names = ["item", *(field.name for field in feature_set.schema.event)]
    parts = {split: feature_set.events(split) for split in SPLITS}
    every = [np.stack([one[name].astype(np.float64) for name in names], 1) for split in SPLITS for one in parts[split]]
    stacked_EC = np.concatenate(every)
    # A missing number equals no other, so it has a value that no encoded number has.
    filled_EC = np.where(np.isnan(stacked_EC), np.inf, stacked_EC)
    distinct_UC, inverse_E = np.unique(filled_EC, axis=0, return_inverse=True)
    ends = np.cumsum([len(part) for part in every])
    by_part = iter(np.split(inverse_E.ravel().astype(np.int32), ends[:-1]))
    row_of_event: dict[SplitName, list[np.ndarray]] = {split: [next(by_part) for _ in parts[split]] for split in SPLITS}
    return np.where(np.isinf(distinct_UC), np.nan, distinct_UC), row_of_event


def _items(feature_set: FeatureSet, events_UC: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, dict[str, Any]]]:
    """Columns of the items as targets, then of the distinct events, and how FuxiCTR reads each."""
    schema = feature_set.schema
    item = np.concatenate([np.arange(schema.items), events_UC[:, 0].astype(np.int64)])
    columns: dict[str, np.ndarray] = {"item_index": np.arange(len(item))}
    features: dict[str, dict[str, Any]] = {}
    for field in schema.item:
        flagged = _can_be_missing(feature_set, "item", field)
        columns[_name("item", field)] = _values(feature_set.items[field.name], flagged)[item]
        features[_name("item", field)] = _spec(field, "item", flagged)
    for one in schema.vectors:
        width = min(COMPONENTS, one.width)
        found = PCA(width, random_state=0).fit_transform(np.asarray(feature_set.vectors(one.name)))
        if not one.complete:
            found = np.column_stack([found, ~np.asarray(feature_set.present(one.name))])
        columns[f"vector_{one.name}"] = found.astype(np.float32)[item]
        features[f"vector_{one.name}"] = _wide("item", found.shape[1])
    for number, field in enumerate(schema.event, start=1):
        numeric = field.kind == "numeric"
        of_targets = np.full(schema.items, np.nan if numeric else UNKNOWN)
        values = np.concatenate([of_targets, events_UC[:, number]])
        columns[_name("event", field)] = _values(values.astype(np.float32 if numeric else np.int64), numeric)
        features[_name("event", field)] = _spec(field, "item", flagged=True)
    for values in columns.values():
        # FuxiCTR's mean of a history leaves no position out of its sum: it counts on padding to be nothing at all.
        values[PADDING] = 0
    return columns, features


def _rows(
    feature_set: FeatureSet, split: SplitName, row_fields: Sequence[tuple[str, Field]], flagged: set[str]
) -> dict[str, np.ndarray]:
    """The columns of a split's rows, in stored order."""
    parts: dict[str, list[np.ndarray]] = {}
    for rows in feature_set.rows(split):
        values = {"item_index": rows["item"], "label": rows["label"].astype(np.float64)}
        for side, field in row_fields:
            source = feature_set.users[field.name][rows["user"]] if side == "user" else rows[field.name]
            values[_name(side, field)] = _values(source, _name(side, field) in flagged)
        for name, found in values.items():
            parts.setdefault(name, []).append(found)
    return {name: np.concatenate(found) for name, found in parts.items()}


def _histories(
    feature_set: FeatureSet, split: SplitName, row_of_event: Sequence[np.ndarray], liked: Any
) -> list[np.ndarray]:
    """The rows of `items.parquet` of each row's past events, oldest first."""
    targets, most = feature_set.schema.items, feature_set.schema.history_max_len
    found = []
    for rows, events, place_E in zip(feature_set.rows(split), feature_set.events(split), row_of_event, strict=True):
        chosen_E, entry_E = liked(events), targets + place_E
        for end, length in zip(rows["history_end"], rows["history_len"], strict=True):
            past = slice(end - length, end)
            kept = entry_E[past][chosen_E[past]][-most:]
            # FuxiCTR divides by the number of events: without any, the scores of its DCNv2 are no numbers.
            found.append(kept if len(kept) else np.array([UNKNOWN], entry_E.dtype))
    return found


def histories_of(folder: Path, split: str) -> Path:
    """The file of a split's histories."""
    return folder / f"{split}_histories.parquet"


def _every(events: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.ones(len(events["item"]), bool)


def _liked(feature_set: FeatureSet) -> Any:
    """Which events were positives: their label was above the item's rate, which lies between 0 and 1."""
    columns = feature_set.contract.history.columns
    residuals = [name for name, one in columns.items() if one.type == "residual"]
    if not residuals:
        return _every
    encoder = Encoder.load(feature_set.path).event[residuals[0]]
    # Standardising keeps the order: what a residual of 0 became parts the two.
    zero = encoder.encode_one(0.0)[0]
    return lambda events: events[residuals[0]] > zero


def _can_be_missing(feature_set: FeatureSet, side: str, field: Field) -> bool:
    """Whether a number is missing in its table, or in a training row."""
    if field.kind != "numeric":
        return False
    if side != "row":
        table = feature_set.items if side == "item" else feature_set.users
        return bool(np.isnan(table[field.name]).any())
    return any(bool(np.isnan(part[field.name]).any()) for part in feature_set.rows("train"))


def _values(values: np.ndarray, flagged: bool) -> np.ndarray:
    """As they are, 0 for missing; behind a flagged number whether it is missing, [N, 2]."""
    filled = np.nan_to_num(values)
    return np.stack([filled, np.isnan(values).astype(filled.dtype)], 1) if flagged else filled


def _spec(field: Field, source: str, flagged: bool) -> dict[str, Any]:
    if field.kind == "numeric":
        return _wide(source, 2) if flagged else {"source": source, "type": "numeric"}
    found: dict[str, Any] = {"source": source, "type": "categorical", "vocab_size": field.size, "padding_idx": 0}
    if field.kind == "tags":
        pooled = {"type": "sequence", "max_len": field.max_len, "feature_encoder": "layers.MaskedAveragePooling()"}
        found |= pooled
    return found


def _wide(source: str, width: int) -> dict[str, Any]:
    """Several numbers that FuxiCTR projects together."""
    return {"source": source, "type": "embedding", "pretrain_dim": width}


def _name(side: str, field: Field) -> str:
    return f"{side}_{field.name}"


def _column(values: np.ndarray) -> Any:
    if values.ndim == 1:
        return values
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1]).cast(
        pa.list_(pa.from_numpy_dtype(values.dtype))
    )
