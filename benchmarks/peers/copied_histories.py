"""What rows would weigh on disk with the history copied into each of them, beside rows that point into events."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from features.store.feature_set import FeatureSet, read_arrow

ROWS_A_BATCH = 50_000
POINTERS = ("history_end", "history_len")

Arrays = dict[str, np.ndarray]


def bytes_per_row(feature_set: str) -> dict[str, float]:
    """Bytes a row of rows and events as they lie on disk (`ours`), and of the same rows with copied histories.

    The copied layouts are written as Arrow files, to a stream that counts what it is given, from the whole of the
    first part: all rows of a fixed share of the users, in all splits. `copied` has lists of the real lengths of item
    and event columns; `copied_with_time` those of the events' times, too, which ours hold; `padded` has item and event
    columns in lists of `history.max_len`, as training code that wants a matrix often stores them.
    """
    opened = FeatureSet.open(Path(feature_set))
    manifest = opened.manifest
    rows = sum(window.rows for window in manifest.windows.values())
    on_disk = sum(entry.bytes for name, entry in manifest.files.items() if name.startswith(("rows/", "events/")))
    _, first = next(groupby(sorted(manifest.parts, key=lambda part: part.events), key=lambda part: part.events))
    parts = list(first)
    events = read_arrow(opened.path / parts[0].events)
    files = [read_arrow(opened.path / part.rows) for part in parts]
    sampled = sum(len(file["user"]) for file in files)
    lists = {
        "copied": lambda batch: as_lists(batch, {name: events[name] for name in events if name != "time"}),
        "copied_with_time": lambda batch: as_lists(batch, events),
        "padded": lambda batch: as_padded(batch, events, manifest.schema_.history_max_len),
    }
    written = {
        name: sum(_written(_row_columns(batch) | copy(batch) for batch in _batches(file)) for file in files)
        for name, copy in lists.items()
    }
    return {"ours": on_disk / rows} | {name: size / sampled for name, size in written.items()}


def _written(batches: Iterable[dict[str, Any]]) -> int:
    """Bytes of one Arrow file of these batches."""
    counted, writer = pa.MockOutputStream(), None
    for columns in batches:
        batch = pa.RecordBatch.from_pydict(columns)
        writer = writer or pa.ipc.new_file(counted, batch.schema)
        writer.write_batch(batch)
    if writer is not None:
        writer.close()
    return int(counted.size())


def _batches(rows: Arrays) -> Iterator[Arrays]:
    for first in range(0, len(rows["user"]), ROWS_A_BATCH):
        yield {name: values[first : first + ROWS_A_BATCH] for name, values in rows.items()}


def _row_columns(batch: Arrays) -> dict[str, Any]:
    return {name: pa.array(values) for name, values in batch.items() if name not in POINTERS}


def as_lists(batch: Arrays, events: Arrays) -> dict[str, Any]:
    """Each row's history as lists of its real length."""
    end_R, length_R = (batch[name].astype(np.int64) for name in POINTERS)
    offsets = np.concatenate([[0], np.cumsum(length_R)])
    # Place of each copied event among the events: counted on from where its row's history begins.
    place_P = np.arange(offsets[-1]) + np.repeat(end_R - length_R - offsets[:-1], length_R)
    ends = pa.array(offsets.astype(np.int32))
    return {f"history_{name}": pa.ListArray.from_arrays(ends, pa.array(of[place_P])) for name, of in events.items()}


def as_padded(batch: Arrays, events: Arrays, max_len: int) -> dict[str, Any]:
    """Each row's history as a list of `max_len`, zeros in front."""
    place_RS = batch["history_end"][:, None] - max_len + np.arange(max_len)
    there_RS = np.arange(max_len) >= max_len - batch["history_len"][:, None]
    columns = {}
    for name, of in events.items():
        if name != "time":
            copied_RS = np.where(there_RS, of[np.where(there_RS, place_RS, 0)], 0).astype(of.dtype)
            columns[f"history_{name}"] = pa.FixedSizeListArray.from_arrays(pa.array(copied_RS.reshape(-1)), max_len)
    return columns
