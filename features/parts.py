"""The log to parts: encoded chunk by chunk into user buckets, each then sorted into rows and events."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from features.contract import Contract
from features.encoder import Encoder
from features.errors import DataError, named
from features.feature_set import SPLITS, SplitName, Window, write_arrow
from features.history import history_spans
from features.log import CONTEXT, EVENT, HISTORY, ITEM, LABEL, REQUEST, TIME, USER, WEIGHT, Log, distinct
from features.progress import progress
from features.split import Splitter
from features.vocabulary import Vocabulary

ROWS_A_PART = 1_000_000
MOST_PARTS = 64
ROWS_A_CHUNK = 500_000
BUCKETS = ".buckets"

Arrays = dict[str, np.ndarray]


def write_parts(
    contract: Contract, log: Log, splitter: Splitter, encoder: Encoder, folder: Path
) -> tuple[dict[SplitName, Window], int, int]:
    """Write `rows/<split>/part-*.arrow` and `events/part-*.arrow`.

    A part holds the users whose row is `part` modulo the number of parts, so memory is bounded by the
    largest part and one chunk, whatever the log's size.

    Returns:
        Window of each split, number of parts, number of events.

    Raises:
        DataError: a window is empty, or a column holds what its encoder cannot read.
    """
    parts = min(MOST_PARTS, -(-log.rows // ROWS_A_PART))
    request = contract.interactions.request
    requests = Vocabulary(distinct(log, REQUEST, request)) if request else None
    chunks = (_encode(chunk, contract, encoder, requests, log.path) for chunk in _chunks(log))
    totals: dict[SplitName, list[Window]] = {name: [] for name in SPLITS}
    events = 0
    with progress("building rows and histories", total=2 * log.rows, unit="rows") as bar:
        buckets = _into_buckets(chunks, parts, folder / BUCKETS, bar.advance)
        for part, rows in enumerate(buckets):
            count, windows = _write_part(rows, part, contract, splitter, encoder, folder)
            events += count
            for name, window in windows.items():
                totals[name].append(window)
            bar.advance(len(rows["user"]))
    shutil.rmtree(folder / BUCKETS, ignore_errors=True)
    merged = {name: _merge(windows, name, log) for name, windows in totals.items()}
    return merged, parts, events


def _chunks(log: Log) -> Iterator[pl.DataFrame]:
    if log.rows <= ROWS_A_CHUNK:
        yield log.frame.collect()
        return
    yield from log.frame.collect_batches(chunk_size=ROWS_A_CHUNK, engine="streaming")


def _encode(
    chunk: pl.DataFrame, contract: Contract, encoder: Encoder, requests: Vocabulary | None, path: str
) -> Arrays:
    """Raw columns of a chunk to the columns of rows and events; event columns keep their prefix."""
    with named(path):
        columns = {
            "user": encoder.users.encode(chunk[USER]),
            "item": encoder.items.encode(chunk[ITEM]),
            "label": chunk[LABEL].to_numpy(),
            "time": chunk[TIME].to_numpy(),
            EVENT: chunk[EVENT].to_numpy(),
            **{name: one.encode(_column(chunk, CONTEXT, name)) for name, one in encoder.context.items()},
            **{HISTORY + name: one.encode(_column(chunk, HISTORY, name)) for name, one in encoder.event.items()},
        }
    if contract.interactions.weight:
        columns["weight"] = chunk[WEIGHT].cast(pl.Float32).fill_null(1.0).to_numpy()
    if requests is not None:
        columns["request"] = requests.encode(chunk[REQUEST]).astype(np.int64)
    return columns


def _column(chunk: pl.DataFrame, prefix: str, name: str) -> pl.Series:
    return chunk[prefix + name].rename(name)


def _into_buckets(chunks: Iterator[Arrays], parts: int, folder: Path, advance: object) -> Iterator[Arrays]:
    """Rows of each part in turn, in the log's order; more than one part goes by way of files."""
    tell = advance if callable(advance) else lambda rows: None
    if parts == 1:
        kept = []
        for columns in chunks:
            kept.append(columns)
            tell(len(columns["user"]))
        yield {name: np.concatenate([columns[name] for columns in kept]) for name in kept[0]}
        return
    folder.mkdir()
    writers: list[pa.RecordBatchStreamWriter] = []
    try:
        for columns in chunks:
            batch = pa.RecordBatch.from_pydict({name: pa.array(values) for name, values in columns.items()})
            if not writers:
                writers = [pa.ipc.new_stream(str(folder / f"{part}.arrow"), batch.schema) for part in range(parts)]
            bucket = columns["user"] % parts
            order = np.argsort(bucket.astype(np.int8), kind="stable")
            batch = batch.take(pa.array(order))
            ends = np.searchsorted(bucket[order], np.arange(parts + 1))
            for part, writer in enumerate(writers):
                writer.write_batch(batch.slice(ends[part], ends[part + 1] - ends[part]))
            tell(len(order))
    finally:
        for writer in writers:
            writer.close()
    for part in range(parts):
        path = folder / f"{part}.arrow"
        with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as reader:
            table = reader.read_all().combine_chunks()
        yield {name: table[name].to_numpy() for name in table.column_names}
        path.unlink()


def _write_part(
    rows: Arrays, part: int, contract: Contract, splitter: Splitter, encoder: Encoder, folder: Path
) -> tuple[int, dict[SplitName, Window]]:
    """Sort one part by user and time (ties keep the log's order), find its histories, write it."""
    order = np.lexsort((rows["time"], rows["user"]))
    rows = {name: values[order] for name, values in rows.items()}
    is_event = rows.pop(EVENT).astype(bool)
    end, length = history_spans(rows["user"], rows["time"], is_event, contract.history.max_len)
    events = {name: rows.pop(HISTORY + name) for name in encoder.event}
    events = {"item": rows["item"], "time": rows["time"], **events}
    write_arrow(folder / "events" / f"part-{part:05d}.arrow", {name: v[is_event] for name, v in events.items()})
    rows |= {"history_end": end, "history_len": length}
    split = splitter.assign(rows["time"], rows["user"], encoder.users)
    windows: dict[SplitName, Window] = {}
    for number, name in enumerate(SPLITS):
        chosen = {column: values[split == number] for column, values in rows.items()}
        write_arrow(folder / "rows" / name / f"part-{part:05d}.arrow", chosen)
        if len(chosen["time"]):
            windows[name] = Window(
                rows=len(chosen["time"]),
                positives=int(chosen["label"].sum()),
                first_time=int(chosen["time"].min()),
                last_time=int(chosen["time"].max()),
            )
    return int(is_event.sum()), windows


def _merge(windows: list[Window], name: str, log: Log) -> Window:
    if not windows:
        raise DataError(
            f"{log.path}: the {name} window is empty (of {log.rows} rows). Change split.valid and split.test, or bring "
            "more data."
        )
    return Window(
        rows=sum(window.rows for window in windows),
        positives=sum(window.positives for window in windows),
        first_time=min(window.first_time for window in windows),
        last_time=max(window.last_time for window in windows),
    )
