"""One shard of users to one part: sorted into rows and events, histories found, written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from features.chunk import Chunk
from features.contract.contract import LABEL_PREFIX, Contract
from features.encoding.encoder import Encoder
from features.errors import DataError
from features.fitting.split import Splitter
from features.point_in_time.history import gap_seconds, history_spans, without_repeats
from features.store.arrow import to_numpy
from features.store.feature_set import SPLITS, PartEntry, SplitName, Window, part_file, write_arrow
from features.store.versions import INSTANT


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


def sorted_part(shard: Chunk, contract: Contract, splitter: Splitter, encoder: Encoder) -> Part:
    """Sort one shard by user and time (ties keep the log's order) and find its histories."""
    chunk = shard.take(np.lexsort((shard.time, shard.user)))
    if chunk.given is not None:
        events, end_R, length_R = given_spans(chunk.given)
        event_user = np.empty(0, np.int32)
    else:
        is_event = _events(chunk, contract)
        history = contract.history
        end_R, length_R = history_spans(
            chunk.user,
            chunk.time,
            is_event,
            history.max_len,
            history.within,
            history.session_gap,
            chunk.instant,
            history.delay or 0,
        )
        events = {"item": chunk.item, "time": chunk.time} | _event_columns(chunk, is_event, contract, encoder)
        events = {name: values[is_event] for name, values in events.items()}
        event_user = chunk.user[is_event]
    rows = _row_columns(chunk, contract) | {"history_end": end_R, "history_len": length_R}
    split = splitter.assign(chunk, encoder.users)
    if not chunk.is_row.all():
        rows, split = {name: values[chunk.is_row] for name, values in rows.items()}, split[chunk.is_row]
    return Part(rows, events, event_user, split)


def _row_columns(chunk: Chunk, contract: Contract) -> dict[str, np.ndarray]:
    """The columns of rows as they lie on disk."""
    columns = {"user": chunk.user, "item": chunk.item, "label": chunk.label, "time": chunk.time}
    if contract.has_versions and contract.interactions.request is not None:
        columns[INSTANT] = chunk.instant
    columns |= chunk.context
    columns |= {LABEL_PREFIX + name: label for name, label in chunk.labels.items()}
    optional = {"weight": chunk.weight, "request": chunk.request}
    columns |= {name: values for name, values in optional.items() if values is not None}
    return columns | chunk.counters


def write_part(part: Part, number: int, folder: Path) -> list[PartEntry]:
    """Write `events/part-N.arrow` and the rows of each split beside it, in `rows/<split>/part-N.arrow`."""
    file = part_file(number)
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
    return DataError(
        f"{path}: the {name} window has no rows. Bring the days that are lacking, or change split.valid and split.test."
    )


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


def without_negatives(contract: Contract, windows: Mapping[SplitName, Window]) -> tuple[str, ...]:
    """A sentence that no negative was drawn in some splits of a log of positives; none where there are some in each."""
    lacking = [name for name, window in windows.items() if window.rows == window.positives]
    if contract.interactions.negatives is None or not lacking:
        return ()
    return (
        f"interactions.negatives: none could be drawn in {', '.join(lacking)}: all rows are positives. Items are drawn "
        "that had a positive before (`in_window`: within `window` before) and that the user has not taken. Bring a log "
        "of more items, or change `how`, `window` or `exclude`.",
    )


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


def _events(chunk: Chunk, contract: Contract) -> np.ndarray:
    """Which rows of the sorted chunk are events of histories, bool [R]."""
    is_event = chunk.is_event
    if contract.history.tables:
        is_event = is_event & ~duplicates_across_tables(chunk)
    return without_repeats(chunk.user, chunk.item, is_event, contract.history.repeats)


def duplicates_across_tables(chunk: Chunk) -> np.ndarray:
    """Events of a history table that the log, or another table, has too: same user, item and instant, bool [R].

    Of several equal ones the first stays: an event of the log before those of tables, which keep their order. A row of
    the log that is no event takes no event of a table away.
    """
    # 0: an event of the log, 1: of a table, 2: what is no event.
    rank = np.where(chunk.is_event, np.where(chunk.is_logged, 0, 1), 2)
    order = np.lexsort((rank, chunk.item, chunk.time, chunk.user))
    user, item, time = chunk.user[order], chunk.item[order], chunk.time[order]
    same_as_previous = (user[1:] == user[:-1]) & (item[1:] == item[:-1]) & (time[1:] == time[:-1])
    is_duplicate = np.zeros(chunk.rows, bool)
    is_duplicate[order[1:][same_as_previous]] = True
    return is_duplicate & ~chunk.is_logged


def _event_columns(chunk: Chunk, is_event: np.ndarray, contract: Contract, encoder: Encoder) -> dict[str, np.ndarray]:
    result = {}
    for name, spec in contract.history.columns.items():
        if spec.type == "gap":
            seconds = gap_seconds(chunk.user, chunk.time, is_event)
            values = encoder.event[name].encode(pl.Series(name, seconds, nan_to_null=True))
        elif spec.type == "residual":
            residual = chunk.label - chunk.raw_counters[spec.counter]
            # An event of another table has no label to compare.
            values = np.where(chunk.is_logged, residual, np.nan).astype(np.float32)
        else:
            values = chunk.events[name]
        if chunk.is_from_tail is not None:
            # Computed when these events were new, from what came before them.
            values = np.where(chunk.is_from_tail, chunk.events[name], values)
        result[name] = values
    return result
