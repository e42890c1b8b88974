"""`profile.json`: what the feature set holds, in numbers small enough to read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from features.feature_set import SPLITS, SplitName, Window, read_arrow
from features.schema import UNKNOWN, Schema

HISTORY_BINS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500)


def write_profile(
    folder: Path, windows: dict[SplitName, Window], parts: int, schema: Schema, coverage: dict[str, float]
) -> None:
    """Write counts, label rates, history lengths, unknown shares of each split, and coverage of each vector set.

    Args:
        folder: a feature set whose tables and rows are written.
        windows: of each split.
        parts: how many parts each split has.
        schema: its fields.
        coverage: share of catalogue items with a vector, by set.
    """
    id_index = read_arrow(folder / "items.arrow")[schema.item[0].name]
    splits = {name: _split(folder, name, windows[name], parts, schema, id_index) for name in SPLITS}
    profile = {
        "items": schema.items - 2,
        "users": schema.users - 2,
        "vector_coverage": coverage,
        "splits": splits,
    }
    (folder / "profile.json").write_text(json.dumps(profile, indent=1), encoding="utf-8")


def _split(
    folder: Path, name: SplitName, window: Window, parts: int, schema: Schema, id_index: np.ndarray
) -> dict[str, Any]:
    lengths = np.zeros(len(HISTORY_BINS), np.int64)
    unknown_items = 0
    unknown = {field.name: 0 for field in schema.context}
    for part in range(parts):
        rows = read_arrow(folder / "rows" / name / f"part-{part:05d}.arrow")
        place = np.searchsorted(HISTORY_BINS, rows["history_len"], side="right") - 1
        lengths += np.bincount(place, minlength=len(HISTORY_BINS))
        unknown_items += int((id_index[rows["item"]] == UNKNOWN).sum())
        for field in schema.context:
            values = rows[field.name]
            missing = np.isnan(values) if field.kind == "numeric" else values == UNKNOWN
            unknown[field.name] += int(missing.sum())
    return {
        "rows": window.rows,
        "label_rate": window.positives / window.rows,
        "rows_on_items_without_own_embedding": unknown_items / window.rows,
        "unknown_or_missing": {column: count / window.rows for column, count in unknown.items()},
        "history_length_from": dict(zip(map(str, HISTORY_BINS), lengths.tolist(), strict=True)),
    }
