"""One bucket of users to one part: sorted into rows and events, histories found, written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from features.chunk import CARRIED, COUNTER, EVENT, GIVEN, HISTORY, INSTANT, LOGGED, ROW, SPLIT, Arrays
from features.contract.contract import Contract
from features.encoding.encoder import Encoder
from features.errors import DataError
from features.fitting.split import Splitter
from features.point_in_time.history import gap_seconds, history_spans, without_repeats
from features.store.arrow import to_numpy
from features.store.feature_set import SPLITS, PartEntry, SplitName, Window, write_arrow
from features.store.shuffle import taken

MARKS = (INSTANT, EVENT, ROW, LOGGED, SPLIT, CARRIED)


@dataclass(frozen=True)
class Part:
    """A part on its way to disk.

    Args:
        rows: columns of its rows, by user and time, with `history_end` and `history_len`.
        events: columns of its events, by user and time.
        event_user: whose they are, int32 [events]; empty for given histories.
        split: 0 train, 1 valid, 2 test, int8 [rows].
    """

    rows: dict[str, np.ndarray]
    events: dict[str, np.ndarray]
    event_user: np.ndarray
    split: np.ndarray


def sorted_part(bucket: Arrays, contract: Contract, splitter: Splitter, encoder: Encoder) -> Part:
    """Sort one bucket by user and time (ties keep the log's order) and find its histories."""
    order = np.lexsort((np.asarray(bucket["time"]), np.asarray(bucket["user"])))
    sorted_columns = {name: taken(column, order) for name, column in bucket.items()}
    lists = sorted_columns.pop(GIVEN, None)
    columns: dict[str, np.ndarray] = {name: np.asarray(column) for name, column in sorted_columns.items()}
    is_row = columns[ROW]
    if lists is not None:
        events, end_R, length_R = given_spans(lists)
        event_user = np.empty(0, np.int32)
    else:
        is_event = _events(columns, contract)
        history = contract.history
        end_R, length_R = history_spans(
            columns["user"],
            columns["time"],
            is_event,
            history.max_len,
            history.within,
            history.session_gap,
            columns[INSTANT],
            history.delay or 0,
        )
        events = {
            "item": columns["item"],
            "time": columns["time"],
            **_event_columns(columns, is_event, contract, encoder),
        }
        events = {name: values[is_event] for name, values in events.items()}
        event_user = columns["user"][is_event]
    split = splitter.assign(columns, encoder.users)
    kept = {
        name: values
        for name, values in columns.items()
        if name not in MARKS and not name.startswith((HISTORY, COUNTER))
    }
    rows = kept | {"history_end": end_R, "history_len": length_R}
    if contract.has_versions and contract.interactions.request is not None:
        rows[INSTANT] = columns[INSTANT]
    if not is_row.all():
        rows, split = {name: values[is_row] for name, values in rows.items()}, split[is_row]
    return Part(rows, events, event_user, split)


def write_part(part: Part, number: int, folder: Path) -> list[PartEntry]:
    """Write `events/part-N.arrow` and the rows of each split beside it, in `rows/<split>/part-N.arrow`."""
    file = f"part-{number:05d}.arrow"
    write_arrow(folder / "events" / file, part.events)
    entries = []
    for which, name in enumerate(SPLITS):
        chosen = {column: values[part.split == which] for column, values in part.rows.items()}
        write_arrow(folder / "rows" / name / file, chosen)
        entries.append(
            PartEntry(split=name, rows=f"rows/{name}/{file}", events=f"events/{file}", window=window_of(chosen))
        )
    return entries


def window_of(rows: dict[str, np.ndarray]) -> Window | None:
    """Count rows and positives, and the time they span; None without rows."""
    if not len(rows["time"]):
        return None
    return Window(
        rows=len(rows["time"]),
        positives=int(np.nansum(rows["label"])),
        first_time=int(rows["time"].min()),
        last_time=int(rows["time"].max()),
        labelled=not np.isnan(rows["label"]).any(),
    )


def without_rows(path: str, name: SplitName) -> DataError:
    """That a split of the log at `path` is empty."""
    return DataError(f"{path}: the {name} window has no rows. Change split.valid and split.test, or bring more data.")


def windows_of(parts: list[PartEntry], path: str) -> dict[SplitName, Window]:
    """The window of each split over its parts. Raises DataError, naming the log at `path`, for a split without rows."""
    windows: dict[SplitName, Window] = {}
    for name in SPLITS:
        found = [part.window for part in parts if part.split == name and part.window is not None]
        if not found:
            raise without_rows(path, name)
        windows[name] = Window(
            rows=sum(window.rows for window in found),
            positives=sum(window.positives for window in found),
            first_time=min(window.first_time for window in found),
            last_time=max(window.last_time for window in found),
            labelled=all(window.labelled for window in found),
        )
    return windows


def given_spans(lists: pa.LargeListArray) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Histories that came with the rows, each stored once where rows in a row share it.

    Args:
        lists: one list of item rows (int32) a row, oldest first.

    Returns:
        The events; end, int64 [R], and length, int32 [R], of each row's history among them.
    """
    items, offsets = to_numpy(lists.flatten()), to_numpy(lists.offsets).astype(np.int64)
    offsets = offsets - offsets[0]
    length_R = np.diff(offsets)
    same_R = np.r_[False, length_R[1:] == length_R[:-1]]
    row_P = np.repeat(np.arange(len(length_R)), length_R)
    place_P = np.flatnonzero(same_R[row_P])
    differs_P = items[place_P] != items[place_P - length_R[row_P[place_P]]]
    same_R[row_P[place_P][differs_P]] = False
    kept_P = ~same_R[row_P]
    end_R = np.cumsum(np.where(same_R, 0, length_R))
    return {"item": items[kept_P]}, end_R, length_R.astype(np.int32)


def _events(columns: dict[str, np.ndarray], contract: Contract) -> np.ndarray:
    """Which rows of the bucket are events of histories, bool [R]."""
    is_event = columns[EVENT].astype(bool)
    if contract.history.tables:
        is_event &= ~_told_twice(columns)
    return without_repeats(columns["user"], columns["item"], is_event, contract.history.repeats)


def _told_twice(columns: dict[str, np.ndarray]) -> np.ndarray:
    """Events of a history table that the log (or another table) has too: same user, item and instant, bool [R]."""
    user, item, time = columns["user"], columns["item"], columns["time"]
    # An event of the log comes first of its equals, so it is the one that stays.
    order = np.lexsort((~columns[LOGGED], ~columns[EVENT].astype(bool), item, time, user))
    again = np.zeros(len(order), bool)
    again[1:] = np.logical_and.reduce([x[order][1:] == x[order][:-1] for x in (user, item, time)])
    twice = np.zeros(len(order), bool)
    twice[order] = again & ~columns[LOGGED][order]
    return twice


def _event_columns(
    columns: dict[str, np.ndarray], is_event: np.ndarray, contract: Contract, encoder: Encoder
) -> dict[str, np.ndarray]:
    result = {}
    carried = columns.get(CARRIED)
    for name, spec in contract.history.columns.items():
        if spec.type == "gap":
            seconds = gap_seconds(columns["user"], columns["time"], is_event)
            result[name] = encoder.event[name].encode(pl.Series(name, seconds, nan_to_null=True))
        elif spec.type == "residual":
            residual = columns["label"] - columns[COUNTER + spec.counter]
            # An event of another table has no label to compare.
            result[name] = np.where(columns[LOGGED], residual, np.nan).astype(np.float32)
        else:
            result[name] = columns[HISTORY + name]
        if carried is not None:
            # Computed when these events were new, from what came before them.
            result[name] = np.where(carried, columns[HISTORY + name], result[name])
    return result
