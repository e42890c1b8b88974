"""The pasts that a bundle brings, as a table of events that offline scoring reads like any other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from ctr.serving.pasts.snapshot import FOLDER, OFFSETS, SnapshotPasts
from features.encoding.encoder import Encoder
from features.encoding.past import ITEM, TIME, Past, PastEvent
from features.errors import ConfigError
from features.requests.past_table import USER
from features.requests.raw_columns import Given, RawColumns, RawEvents, log_time
from features.store.schema import FIRST_VALUE

USERS_A_BLOCK = 10_000


def write_events(bundle: Path, encoder: Encoder, users: pl.Series, path: Path) -> int:
    """Write what a bundle knows of some users as parquet: `user`, `item`, `time`, and the raw columns that are read.

    Args:
        bundle: its folder.
        encoder: of the bundle.
        users: raw ids, distinct; null and unknown ones have no past.
        path: of the file.

    Returns:
        How many events there are.

    Raises:
        ConfigError: the bundle was exported without pasts.
        DataError: ids of another type than the log's.
    """
    if not (bundle / FOLDER / OFFSETS).is_file():
        raise ConfigError(
            f"--pasts: {bundle.name} was exported without pasts. Export the run with `quadrank export --pasts`, or "
            "give the events with --events."
        )
    pasts = SnapshotPasts(bundle, encoder.contract, encoder.users, lambda outcome: None)
    reading = RawColumns(encoder.contract, encoder.log_columns)
    known = users.filter(encoder.users.encode(users) >= FIRST_VALUE).to_list()
    total, writer = 0, None
    try:
        for start in range(0, max(len(known), 1), USERS_A_BLOCK):
            table = _table(pasts, encoder, reading, known[start : start + USERS_A_BLOCK]).to_arrow()
            writer = writer or pq.ParquetWriter(path, table.schema)
            writer.write_table(table)
            total += table.num_rows
    finally:
        if writer is not None:
            writer.close()
    return total


def _table(pasts: SnapshotPasts, encoder: Encoder, reading: RawColumns, users: list[object]) -> pl.DataFrame:
    of_event, events = list[object](), list[PastEvent]()
    for user in users:
        found = pasts.newest(user)
        events += found
        of_event += [user] * len(found)
    raw = RawEvents(reading, Past.of(events), of_event)
    timed = str(encoder.contract.interactions.time)
    return pl.DataFrame(
        {
            USER: pl.Series(of_event, dtype=encoder.users.values.dtype),
            ITEM: pl.Series([event.item for event in events], dtype=encoder.items.values.dtype),
            TIME: log_time(np.array([event.time for event in events], np.int64), reading.log[timed], encoder.contract),
            **{name: _column(raw, name) for name in _read(reading)},
        }
    )


def _read(reading: RawColumns) -> Iterator[str]:
    log = reading.contract.interactions
    read = reading.computed_of | reading.events_read
    read |= {one.name for one in reading.columns.values() if isinstance(one, Given)}
    yield from sorted(read - {log.user, log.item, log.time})


def _column(raw: RawEvents, name: str) -> pl.Series:
    """As the log has it; whether an item of a list was clicked is no column of such a log."""
    return raw.computed(Given(name)) if name in raw.reading.log else pl.Series(raw.numbers(name))
