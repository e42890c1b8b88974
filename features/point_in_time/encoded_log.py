"""The log as encoded chunks, in its own order: rows, the negatives drawn for them, then events of history tables."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import polars as pl
import pyarrow as pa

from features.calendar import FIRST_TIME
from features.chunk import (
    CONTEXT,
    EVENT,
    GIVEN,
    HISTORY,
    ITEM,
    LABEL,
    LABELS,
    NUMBERS,
    REQUEST,
    SPLIT,
    TIME,
    USER,
    WEIGHT,
    Chunk,
)
from features.contract.contract import Contract
from features.contract.log import HistoryTable
from features.encoding.base import ColumnEncoder
from features.encoding.encoder import Encoder
from features.encoding.number import numbers
from features.encoding.vocabulary import id_hashes
from features.errors import error_prefix
from features.point_in_time.instants import Instants, names_in, request_columns, request_numbers
from features.point_in_time.negatives import NONE, Drawn, draw_negatives
from features.sources.keys import canonical
from features.sources.log import Log, chunks
from features.store.arrow import to_arrow
from features.store.feature_set import Sampling
from features.store.schema import UNKNOWN

NO_SIGN = 2**63 - 1  # all bits of a whole number of 64 bits but that of its sign


@dataclass
class EncodedLog:
    """Reads the log as often as it is asked to; each pass gives the same rows in the same chunks.

    Args:
        contract: what the columns are.
        log: the checked log.
        encoder: fitted.
        since: rows before this time (µs) are no rows of this build: they count and stand in histories.
        instants: of requests that took their time.
    """

    contract: Contract
    log: Log
    encoder: Encoder
    since: int | None = None
    instants: Instants = field(default_factory=Instants)

    def narrow(self) -> Iterator[Chunk]:
        """Chunks without the columns that the contract declares beside user, item, time and label."""
        names = dict.fromkeys((USER, ITEM, TIME, LABEL, EVENT, *self._file, *self.instants.reads))
        yield from self._passes(self.log.frame.select(list(names)), lambda logged, chunk: chunk)

    def requests(self) -> Iterator[tuple[Chunk, np.ndarray]]:
        """Narrow chunks of the log's own rows, each with the number of its rows' requests, uint64 [R].

        A row without a request id is a request of its own.
        """
        columns, first = request_columns(self.contract), 0
        names = dict.fromkeys((USER, ITEM, TIME, LABEL, EVENT, REQUEST, *names_in(columns), *self._file))
        names |= dict.fromkeys(self.instants.reads)
        for logged in chunks(self.log.frame.select(list(names)), self.log.rows):
            place = np.arange(first, first + logged.height, dtype=np.uint64)
            first += logged.height
            with error_prefix(self.log.path):
                chunk = self._common(logged)
            yield chunk, np.where(logged[REQUEST].is_null().to_numpy(), place, request_numbers(logged, columns))

    def counted(self) -> Iterator[Chunk]:
        """Chunks with what counters read: the context columns of their keys, their labels and numbers."""
        counters, sides = self.contract.counters, self.contract.counter_sides
        context = [name for name, side in sides.items() if side == "context"]
        labels = sorted({counter.label for counter in counters.values() if counter.label is not None})
        added = [name for name, counter in counters.items() if counter.number is not None]

        def with_counted(logged: pl.DataFrame, chunk: Chunk) -> Chunk:
            return replace(
                chunk,
                context={name: self.encoder.context[name].encode(_column(logged, CONTEXT, name)) for name in context},
                labels={name: logged[LABELS + name].cast(pl.Float32).to_numpy() for name in labels},
                numbers={name: numbers(logged[NUMBERS + name].rename(f"counters.{name}.number")) for name in added},
            )

        names = dict.fromkeys((USER, ITEM, TIME, LABEL, EVENT, *self._file, *self.instants.reads))
        names |= dict.fromkeys(
            [*(CONTEXT + name for name in context), *(LABELS + name for name in labels), *(NUMBERS + n for n in added)]
        )
        yield from self._passes(self.log.frame.select(list(names)), with_counted)

    def full(self) -> Iterator[Chunk]:
        """Chunks with every column that the contract declares, but counters."""
        yield from self._passes(self.log.frame, self._with_declared)

    def most_rows(self) -> int:
        """Rows of a pass: those of the log, drawn ones, and earlier events, also those of users that nobody knows."""
        drawn = 0 if self._negatives is None else int((self._negatives.items_RK != NONE).sum())
        earlier = sum(events.select(pl.len()).collect(engine="streaming").item() for events in self.log.earlier)
        return self.log.rows + drawn + int(earlier)

    def newest_time(self) -> int:
        """Time of the log's newest row, µs."""
        return int(self.log.frame.select(pl.col(TIME).max()).collect(engine="streaming").item())

    @cached_property
    def _negatives(self) -> Drawn | None:
        """Drawn for every row of the log."""
        spec = self.contract.interactions.negatives
        if spec is None:
            return None
        names = list(dict.fromkeys((USER, ITEM, TIME, *self.instants.reads)))
        kept = [
            (self._users(chunk), self._items(chunk), chunk[TIME].to_numpy(), self.instants.of(chunk))
            for chunk in chunks(self.log.frame.select(names), self.log.rows)
        ]
        user_R, item_R, time_R, instant_R = (np.concatenate(column) for column in zip(*kept, strict=True))
        hashes = id_hashes(self.encoder.users), id_hashes(self.encoder.items)
        return draw_negatives(user_R, item_R, time_R, spec, *hashes, instant_R)

    def sampling(self, first_time: int = FIRST_TIME) -> Sampling | None:
        """What was drawn for positives from `first_time` (µs) on, None without `negatives`."""
        if self._negatives is None:
            return None
        chosen_R = self._negatives.time_R >= first_time
        drawn = int((self._negatives.items_RK[chosen_R] != NONE).sum())
        rows = max(int(chosen_R.sum()), 1)
        rate = None
        if self.contract.interactions.negatives and self.contract.interactions.negatives.how == "uniform":
            rate = drawn / max(int(self._negatives.possible_R[chosen_R].sum()), 1)
        return Sampling(drawn=drawn, per_positive=drawn / rows, rate=rate)

    def _passes(self, frame: pl.LazyFrame, with_declared: Callable[[pl.DataFrame, Chunk], Chunk]) -> Iterator[Chunk]:
        first = 0
        for logged in chunks(frame, self.log.rows):
            with error_prefix(self.log.path):
                chunk = with_declared(logged, self._common(logged))
            layout = chunk.take(np.arange(0))
            if self._negatives is not None:
                chunk = _with_negatives(chunk, self._negatives.items_RK[first : first + logged.height])
            first += logged.height
            yield chunk
        for table, frame in zip(self.contract.history.tables, self.log.earlier, strict=False):
            for events in chunks(frame):
                yield self._as_events(events, layout, table)

    def _as_events(self, events: pl.DataFrame, layout: Chunk, table: HistoryTable) -> Chunk:
        """Events of a history table, of users whom the log knows: no rows; columns of rows are blank.

        Args:
            events: of the table.
            layout: a chunk of the log, for its columns.
            table: its declaration, for messages.
        """
        with error_prefix(self.contract.resolve(table.path)):
            encoded = {name: encoder.encode(_column(events, HISTORY, name)) for name, encoder in self._event_encoders()}
            time = events[TIME].to_numpy()
            chunk = replace(
                layout.blank(events.height),
                user=self.encoder.users.encode(events[USER].rename(table.user)),
                item=self.encoder.items.encode(events[ITEM].rename(table.item)),
                time=time,
                instant=time,
                label=np.zeros(events.height, np.float32),
                is_event=np.ones(events.height, bool),
                events=encoded if layout.events else {},
            )
        return chunk.take(chunk.user != UNKNOWN)

    def _common(self, logged: pl.DataFrame) -> Chunk:
        """What every pass reads of rows of the log."""
        time, every = logged[TIME].to_numpy(), np.ones(logged.height, bool)
        return Chunk(
            user=self._users(logged),
            item=self._items(logged),
            time=time,
            instant=self.instants.of(logged),
            label=logged[LABEL].to_numpy(),
            is_event=logged[EVENT].to_numpy(),
            is_row=every if self.since is None else time >= self.since,
            is_logged=every,
            file=logged[SPLIT].to_numpy() if self._file else None,
        )

    def _with_declared(self, logged: pl.DataFrame, chunk: Chunk) -> Chunk:
        log = self.contract.interactions
        return replace(
            chunk,
            context={name: self.encoder.context[name].encode(_column(logged, CONTEXT, name)) for name in log.context},
            events={name: encoder.encode(_column(logged, HISTORY, name)) for name, encoder in self._event_encoders()},
            labels={name: logged[LABELS + name].cast(pl.Float32).to_numpy() for name in log.labels},
            weight=logged[WEIGHT].cast(pl.Float32).fill_null(1.0).to_numpy() if log.weight else None,
            request=request_keys(logged[REQUEST].rename(log.request)) if log.request else None,
            given=self._lists(logged[GIVEN]) if self.contract.history.given else None,
        )

    @property
    def _file(self) -> tuple[str, ...]:
        return (SPLIT,) if self.contract.split.by == "files" else ()

    def _event_encoders(self) -> Iterator[tuple[str, ColumnEncoder]]:
        """Event columns that are read from the log; the others are computed from its order."""
        specs = self.contract.history.columns
        for name, encoder in self.encoder.event.items():
            if specs[name].type not in ("gap", "residual"):
                yield name, encoder

    def _users(self, chunk: pl.DataFrame) -> np.ndarray:
        return self.encoder.users.encode(chunk[USER])

    def _items(self, chunk: pl.DataFrame) -> np.ndarray:
        return self.encoder.items.encode(chunk[ITEM])

    def _lists(self, lists: pl.Series) -> pa.LargeListArray:
        """Given histories as lists of item rows, their newest `max_len` alone."""
        newest = lists.fill_null([]).list.tail(self.contract.history.max_len)
        lengths = newest.list.len().to_numpy()
        flat = newest.explode(empty_as_null=False)
        items = self.encoder.items.encode(flat)
        # 64 bits: the lists of one shard together may hold more than 2^31 items.
        offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        return pa.LargeListArray.from_arrays(to_arrow(offsets), to_arrow(items))


def _column(chunk: pl.DataFrame, prefix: str, name: str) -> pl.Series:
    return chunk[prefix + name].rename(name)


def request_keys(raw: pl.Series) -> np.ndarray:
    """One int64 a request, the same in every build: whole numbers without their sign, of text 63 bits of its sha256.

    Rows without a request id get -1, so that a number below 0, say a hash with a sign, must become another one.
    """
    keys = canonical(raw)
    if keys.dtype != pl.String:
        whole = keys.cast(pl.Int64)
        return np.where(whole.is_null().to_numpy(), -1, whole.fill_null(0).to_numpy() & NO_SIGN)
    distinct = keys.unique().drop_nulls()
    hashed = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1 for text in distinct.to_list()]
    if not hashed:
        return np.full(len(keys), -1)
    return keys.replace_strict(
        distinct, pl.Series(hashed, dtype=pl.Int64), default=-1, return_dtype=pl.Int64
    ).to_numpy()


def _with_negatives(chunk: Chunk, drawn_RK: np.ndarray) -> Chunk:
    """Each row followed by its negatives: the same in everything but item and labels, neither logged nor an event."""
    rows, k = drawn_RK.shape
    item = np.concatenate([chunk.item[:, None], drawn_RK], axis=1).reshape(-1)
    found = item != NONE
    item, is_drawn = item[found], np.tile(np.r_[False, np.ones(k, bool)], rows)[found]
    repeated = chunk.take(np.repeat(np.arange(rows), k + 1)[found])
    return replace(
        repeated,
        item=item,
        label=_zero_where(is_drawn, repeated.label),
        labels={name: _zero_where(is_drawn, label) for name, label in repeated.labels.items()},
        is_event=repeated.is_event & ~is_drawn,
        is_logged=repeated.is_logged & ~is_drawn,
    )


def _zero_where(chosen: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.where(chosen, values.dtype.type(0), values)
