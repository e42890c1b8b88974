"""Request-relative columns of every row of the log, before the rows are put into parts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import polars as pl

from features.chunk import Chunk, Values
from features.draws import drawn, one_in
from features.encoding.base import Columns
from features.encoding.encoder import Encoder, fields
from features.encoding.number import NumericEncoder
from features.fitting.fit import Fitted
from features.fitting.split import Splitter
from features.point_in_time.counter_pass import Counted
from features.point_in_time.encoded_log import EncodedLog
from features.point_in_time.relative import numeric, relative_values
from features.store.shuffle import shuffle_by_key
from features.store.versions import ITEM_VERSIONS, ROW, VALID_FROM, Versions, columns_as_of


@dataclass(frozen=True)
class Related:
    """What the request-relative columns of a contract are at every row of the log.

    Args:
        raw: before they are scaled, in the log's order, float64 [rows] by name (memory-mapped).
        encoders: which scale them, by name.
        item_numbers: encoded item columns that they compare, as they are at the end of the log, float32 [items].
    """

    raw: Mapping[str, np.ndarray] = field(default_factory=dict)
    encoders: Columns = field(default_factory=dict)
    item_numbers: Mapping[str, np.ndarray] = field(default_factory=dict)

    def onto(self, chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        """Chunks of a full pass over that log with these columns; events of other tables, which follow, miss them."""
        first = 0
        for chunk in chunks:
            found = {}
            for name, values in self.raw.items():
                of_log = np.asarray(values[first : first + chunk.rows])
                found[name] = self.encoders[name].encode_many(np.r_[of_log, np.full(chunk.rows - len(of_log), np.nan)])
            yield replace(chunk, counters=chunk.counters | found)
            first += chunk.rows

    def added_to(self, encoder: Encoder) -> Encoder:
        """An encoder that has these columns too."""
        candidate = (*encoder.schema.candidate, *fields(self.encoders))
        return replace(
            encoder,
            relative=self.encoders,
            item_numbers=self.item_numbers,
            schema=encoder.schema.model_copy(update={"candidate": candidate}),
        )


def relate_log(
    stream: EncodedLog,
    counted: Counted,
    fitted: Fitted,
    splitter: Splitter,
    shards: int,
    scratch: Path,
    prior: Encoder | None = None,
) -> Related:
    """Compare the rows of each request, wherever they stand in the log, and fit the scale on training rows.

    Memory holds one shard of requests.

    Args:
        stream: the log.
        counted: its counters.
        fitted: its item columns.
        splitter: which rows train.
        shards: how many pieces the requests are compared in.
        scratch: folder for files that are needed until the build ends.
        prior: of the version whose days are kept: its scales are used as they are.
    """
    columns = stream.contract.relative_columns
    if not columns:
        return Related()
    scratch.mkdir(parents=True, exist_ok=True)
    compared = {column.of for column in columns if column.of is not None}
    items = {name: fitted.items[name] for name in compared if name not in stream.contract.counters}
    readers = numeric({**counted.encoders, **{name: fitted.encoder.item[name] for name in items}})
    numbers = _Numbers(stream, counted, items, fitted, sorted(compared), splitter)
    raw = {
        column.name: np.memmap(scratch / f"relative-{place}.f64", np.float64, "w+", shape=(stream.log.rows,))
        for place, column in enumerate(columns)
    }
    for shard in shuffle_by_key(numbers.rows(), "request", shards, scratch / "lists"):
        encoded = {name: shard[f"number/{name}"] for name in numbers.names}
        for name, values in relative_values(columns, readers, encoded, shard["request"]).items():
            raw[name][shard["place"]] = values
    if prior is not None:
        return Related(raw, prior.relative, items)
    places = np.concatenate(numbers.trains)
    chosen = places[drawn(0, len(places), one_in(len(places)))]
    encoders = {
        column.name: NumericEncoder.fit(pl.Series(column.name, raw[column.name][chosen]), column.column)
        for column in columns
    }
    return Related(raw, encoders, items)


class _Numbers:
    """One pass over the log for the numbers that are compared, and which rows train.

    Args:
        stream, counted, fitted, splitter: as of `relate_log`.
        items: encoded item columns by name, at the end of the log.
        names: of the numbers: counters and item columns.
    """

    def __init__(
        self,
        stream: EncodedLog,
        counted: Counted,
        items: Mapping[str, np.ndarray],
        fitted: Fitted,
        names: list[str],
        splitter: Splitter,
    ) -> None:
        self.names = names
        self.trains: list[np.ndarray] = []
        self._stream, self._counted, self._items, self._splitter = stream, counted, items, splitter
        versions = fitted.versions.get(ITEM_VERSIONS)
        self._versions = None
        if versions is not None and items:
            self._versions = Versions(items, {name: versions[name] for name in (ROW, VALID_FROM, *items)})

    def rows(self) -> Iterator[dict[str, Values]]:
        """Request, place in the log and numbers, chunk by chunk."""
        first = 0
        for chunk, request_R in self._stream.requests():
            stop = first + chunk.rows
            trains = (self._splitter.assign(chunk, self._stream.encoder.users) == 0) & chunk.is_row
            self.trains.append(first + np.flatnonzero(trains))
            of_items = columns_as_of(self._items, self._versions, chunk.item, chunk.instant)
            found = {
                name: of_items[name]
                if name in self._items
                else self._counted.encoders[name].encode_many(np.asarray(self._counted.raw[name][first:stop]))
                for name in self.names
            }
            numbers = {f"number/{name}": values for name, values in found.items()}
            yield {"request": request_R, "place": np.arange(first, stop), **numbers}
            first = stop
