"""One pass over a feature set's parts: exact counts of each split, and a sample of its rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from features.calendar import DAY
from features.draws import drawn
from features.store.feature_set import SPLITS, PartEntry, SplitName, read_arrow
from features.store.schema import UNKNOWN, Field, Schema
from features.store.versions import Versions, instants_of

SAMPLE = 500_000  # rows: a share of 1 % is known to 0.03 points with 95 % confidence
LENGTHS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500)  # first history length of each bin

Rows = dict[str, np.ndarray]


@dataclass
class SplitCounts:
    """What is counted over all rows of a split, and its sampled rows.

    Args:
        item_rows, item_clicks: rows and positive rows of each item row, int64 [items].
        user_rows: rows of each user row, int64 [users].
        version_rows: of tables with versions, rows of each row of the stacked table, by `item` or `user`.
        lengths: rows by history length, int64 [bins of `LENGTHS`].
        days: by UTC day since 1970: rows, rows with a label, positives.
        missing: missing or unknown values, by row column.
        sample: columns `user item day label… history_length`, `item_version` and `user_version` of tables with versions
            (rows of the stacked table), and `<section>.<name>`; values of event columns are those
            of the newest event, of which rows without a history have none.
    """

    item_rows: np.ndarray
    item_clicks: np.ndarray
    user_rows: np.ndarray
    lengths: np.ndarray = field(default_factory=lambda: np.zeros(len(LENGTHS), np.int64))
    days: dict[int, np.ndarray] = field(default_factory=dict)
    missing: dict[str, int] = field(default_factory=dict)
    version_rows: dict[str, np.ndarray] = field(default_factory=dict)
    pieces: list[Rows] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """All rows."""
        return int(self.lengths.sum())

    def sample(self) -> Rows:
        """The sampled rows of all parts."""
        return {name: np.concatenate([piece[name] for piece in self.pieces]) for name in self.pieces[0]}


def count_rows(
    folder: Path, parts: Sequence[PartEntry], schema: Schema, versions: Mapping[str, Versions]
) -> tuple[dict[SplitName, SplitCounts], int]:
    """Read every part once, one at a time.

    Args:
        folder: of the feature set.
        parts: its files.
        schema: its fields.
        versions: of the tables that have some, by `item` or `user`.

    Returns:
        Counts of each split that has rows, and k where one row in k was sampled (evenly, with a fixed seed).
    """
    total = sum(part.window.rows for part in parts if part.window)
    one_in = max(1, -(-total // SAMPLE))
    counts = {
        name: SplitCounts(
            np.zeros(schema.items, np.int64), np.zeros(schema.items, np.int64), np.zeros(schema.users, np.int64)
        )
        for name in SPLITS
    }
    for number, part in enumerate(parts):
        rows = read_arrow(folder / part.rows)
        events = read_arrow(folder / part.events) if schema.event else {}
        # A seed for each part, so that no place is drawn in all of them.
        places = drawn(0, len(rows["user"]), one_in, number)
        _add(counts[part.split], rows, events, schema, places)
        for section, known in versions.items():
            _add_versions(counts[part.split], section, known, rows, places)
    return {name: split for name, split in counts.items() if split.rows}, one_in


def is_missing(kind: Field, values: np.ndarray) -> np.ndarray:
    """Which entries of an encoded column are missing or unknown, bool [R]."""
    if kind.kind == "numeric":
        return np.isnan(values)
    return (values if values.ndim == 1 else values[:, 0]) == UNKNOWN


def _add(counts: SplitCounts, rows: Rows, events: Rows, schema: Schema, sampled: np.ndarray) -> None:
    counts.item_rows += np.bincount(rows["item"], minlength=schema.items)
    counts.item_clicks += np.bincount(rows["item"][rows["label"] > 0], minlength=schema.items)
    counts.user_rows += np.bincount(rows["user"], minlength=schema.users)
    length_bin = (np.searchsorted(LENGTHS, rows["history_len"], side="right") - 1).astype(np.int8)
    counts.lengths += np.bincount(length_bin, minlength=len(LENGTHS))
    day = (rows["time"] // DAY).astype(np.int32)
    _add_days(counts.days, day, rows["label"])
    piece = {"user": rows["user"][sampled], "item": rows["item"][sampled], "day": day[sampled]}
    piece["history_length"] = length_bin[sampled]
    piece |= {name: values[sampled] for name, values in rows.items() if name == "label" or name.startswith("label.")}
    for section in ("context", "candidate"):
        for column in getattr(schema, section):
            _add_column(
                counts, piece, f"{section}.{column.name}", column, rows[column.name], lambda values: values[sampled]
            )
    if schema.event:
        has_history = rows["history_len"] > 0
        newest = rows["history_end"][has_history] - 1
        among = np.cumsum(has_history) - 1
        piece["has_history"] = has_history[sampled]
        kept = among[sampled][has_history[sampled]]
        for column in schema.event:
            values = events[column.name][newest]
            _add_column(counts, piece, f"event.{column.name}", column, values, lambda values: values[kept])
    counts.pieces.append(piece)


def _add_column(
    counts: SplitCounts,
    piece: Rows,
    name: str,
    column: Field,
    values: np.ndarray,
    draw: Callable[[np.ndarray], np.ndarray],
) -> None:
    counts.missing[name] = counts.missing.get(name, 0) + int(is_missing(column, values).sum())
    piece[name] = draw(values)


def _add_versions(counts: SplitCounts, section: str, versions: Versions, rows: Rows, drawn: np.ndarray) -> None:
    found = versions.find(rows[section], instants_of(rows))
    rows_V = np.bincount(found, minlength=versions.size + len(versions.row_V))
    counts.version_rows[section] = counts.version_rows.get(section, 0) + rows_V
    counts.pieces[-1][f"{section}_version"] = found[drawn]


def _add_days(days: dict[int, np.ndarray], day_R: np.ndarray, label_R: np.ndarray) -> None:
    if not len(day_R):
        return
    first = int(day_R.min())
    labelled = ~np.isnan(label_R)
    columns = [
        np.bincount(day_R - first),
        np.bincount(day_R[labelled] - first, minlength=int(day_R.max()) - first + 1),
        np.bincount(day_R[label_R > 0] - first, minlength=int(day_R.max()) - first + 1),
    ]
    table = np.stack(columns, axis=1)
    for place in np.flatnonzero(table[:, 0]).tolist():
        days[first + place] = days.get(first + place, np.zeros(3, np.int64)) + table[place]
