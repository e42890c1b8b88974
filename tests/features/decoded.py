"""Rows of a feature set as raw values: ids, columns, labels and histories without the numbering and the scales."""

from __future__ import annotations

from typing import Any

import numpy as np

from features.contract.contract import LABEL_PREFIX
from features.encoding.base import ColumnEncoder
from features.encoding.encoder import Encoder
from features.store.feature_set import SPLITS, FeatureSet
from features.store.schema import FIRST_VALUE

FIXED = ("label", "weight", "request")


def decoded(built: FeatureSet) -> list[dict[str, Any]]:
    """Every row with raw ids and raw values, its history as a list for each event column."""
    encoder = Encoder.load(built.path)
    found = []
    for split in SPLITS:
        for rows, events in zip(built.rows(split), built.events(split), strict=True):
            columns = _row_columns(rows, encoder)
            past = {"item": [_id(encoder.items, index) for index in events["item"]]}
            past |= {name: _raw(events[name], one) for name, one in encoder.event.items()}
            ends, lengths = rows["history_end"].tolist(), rows["history_len"].tolist()
            for place, (end, length) in enumerate(zip(ends, lengths, strict=True)):
                row = {"split": split} | {name: values[place] for name, values in columns.items()}
                row |= {f"history.{name}": values[end - length : end] for name, values in past.items()}
                found.append(row)
    return found


def assert_same_rows(left: list[dict[str, Any]], right: list[dict[str, Any]]) -> None:
    """Both hold the same rows, in whatever order; numbers agree to float32's precision (NaN equals NaN)."""
    keys, numbers = zip(*sorted(map(_split, left), key=repr), strict=True)
    other_keys, other_numbers = zip(*sorted(map(_split, right), key=repr), strict=True)
    assert keys == other_keys
    for key, some, others in zip(keys, numbers, other_numbers, strict=True):
        np.testing.assert_allclose(some, others, rtol=1e-4, atol=1e-4, err_msg=key)


def _split(row: dict[str, Any]) -> tuple[str, list[float]]:
    """A row as text without its broken numbers, and these."""
    found: list[float] = []

    def keep(value: Any) -> Any:
        if isinstance(value, list):
            return [keep(one) for one in value]
        if isinstance(value, float):
            found.append(value)
            return float
        return value

    return repr({name: keep(value) for name, value in row.items()}), found


def _row_columns(rows: dict[str, np.ndarray], encoder: Encoder) -> dict[str, list[Any]]:
    columns = {
        "user": [_id(encoder.users, index) for index in rows["user"]],
        "item": [_id(encoder.items, index) for index in rows["item"]],
        "time": rows["time"].tolist(),
    }
    columns |= {name: rows[name].tolist() for name in rows if name in FIXED or name.startswith(LABEL_PREFIX)}
    encoders = {**encoder.context, **encoder.candidate}
    return columns | {name: _raw(rows[name], one) for name, one in encoders.items()}


def _raw(values: np.ndarray, encoder: ColumnEncoder) -> list[Any]:
    distinct, place = np.unique(values, return_inverse=True)
    raw = [encoder.raw_value(value) for value in distinct]
    raw = [round(value) + 0.0 if isinstance(value, float) else value for value in raw]
    return [raw[one] for one in place]


def _id(catalogue: Any, index: int) -> Any:
    return catalogue.value(index) if index >= FIRST_VALUE else None
