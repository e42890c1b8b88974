"""The log as encoded chunks, in its own order: rows, the negatives drawn for them, and earlier events."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import polars as pl
import pyarrow as pa

from features.chunk import (
    CONTEXT,
    EVENT,
    FIRST_TIME,
    GIVEN,
    HISTORY,
    INSTANT,
    ITEM,
    LABEL,
    LABELS,
    LOGGED,
    REQUEST,
    ROW,
    SPLIT,
    TIME,
    USER,
    WEIGHT,
    Arrays,
    Column,
)
from features.contract.contract import LABEL_PREFIX, Contract
from features.encoding.base import ColumnEncoder
from features.encoding.encoder import Encoder
from features.encoding.vocabulary import id_hashes
from features.errors import named
from features.point_in_time.instants import Instants
from features.point_in_time.negatives import NONE, Drawn, draw_negatives
from features.sources.keys import canonical
from features.sources.log import Log, chunks
from features.store.arrow import to_arrow
from features.store.feature_set import Sampling
from features.store.schema import UNKNOWN
from features.store.shuffle import taken

KEYS = (USER, ITEM, TIME, LABEL)


@dataclass
class Stream:
    """Reads the log as often as it is asked to; each pass gives the same rows in the same chunks.

    Columns of a chunk: `user item` (int32 rows of the catalogues), `label` (float32, NaN where unknown), `time` (µs),
    `_instant` (µs: as of when the row knows the past), three bools, `_split` of a split by files, and in a full pass
    all that the contract declares, encoded. The bools:

        _event    may stand in histories
        _row      trains, validates or tests in this build; false before `since` and for events of other tables
        _logged   was recorded in the log, before `since` too; false for drawn negatives and events of other tables

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

    def narrow(self) -> Iterator[Arrays]:
        """User, item, time and label alone, with what each row is and, of a split by files, its file."""
        frame = self.log.frame.select(list(dict.fromkeys((*KEYS, EVENT, *self._file, *self.instants.reads))))
        yield from self._passes(frame, lambda chunk: {})

    def full(self) -> Iterator[Arrays]:
        """All columns."""
        yield from self._passes(self.log.frame, self._declared)

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

    def _passes(self, frame: pl.LazyFrame, declared: Callable[[pl.DataFrame], Arrays]) -> Iterator[Arrays]:
        first = 0
        for chunk in chunks(frame, self.log.rows):
            with named(self.log.path):
                columns = self._common(chunk) | declared(chunk)
            columns[ROW] = np.ones(chunk.height, bool) if self.since is None else columns["time"] >= self.since
            columns[LOGGED] = np.ones(chunk.height, bool)
            if self._negatives is not None:
                columns = _with_negatives(columns, self._negatives.items_RK[first : first + chunk.height])
            first += chunk.height
            yield columns
            self._like = columns
        for events in self.log.earlier:
            for chunk in chunks(events):
                yield self._as_events(chunk)

    def _as_events(self, chunk: pl.DataFrame) -> Arrays:
        """Events that are no rows: those of users whom the log knows; row columns are blank."""
        with named(self.log.path):
            columns: Arrays = {
                "user": self._users(chunk),
                "item": self._items(chunk),
                "label": np.zeros(chunk.height, np.float32),
                "time": chunk[TIME].to_numpy(),
                INSTANT: chunk[TIME].to_numpy(),
                EVENT: np.ones(chunk.height, bool),
                ROW: np.zeros(chunk.height, bool),
                LOGGED: np.zeros(chunk.height, bool),
            }
            if any(name.startswith(HISTORY) for name in self._like):
                columns |= {
                    HISTORY + name: one.encode(_column(chunk, HISTORY, name)) for name, one in self._event_encoders()
                }
        for name, like in self._like.items():
            if name not in columns:
                columns[name] = _blank(like, chunk.height)
        known = columns["user"] != UNKNOWN
        return {name: taken(values, known) for name, values in ((name, columns[name]) for name in self._like)}

    def _common(self, chunk: pl.DataFrame) -> Arrays:
        return {
            "user": self._users(chunk),
            "item": self._items(chunk),
            "label": chunk[LABEL].to_numpy(),
            "time": chunk[TIME].to_numpy(),
            INSTANT: self.instants.of(chunk),
            EVENT: chunk[EVENT].to_numpy(),
            **{name: chunk[name].to_numpy() for name in self._file},
        }

    def _declared(self, chunk: pl.DataFrame) -> Arrays:
        log = self.contract.interactions
        columns: Arrays = {}
        for name in log.context:
            columns[name] = self.encoder.context[name].encode(_column(chunk, CONTEXT, name))
        for name, encoder in self._event_encoders():
            columns[HISTORY + name] = encoder.encode(_column(chunk, HISTORY, name))
        for name in log.labels:
            columns[LABEL_PREFIX + name] = chunk[LABELS + name].cast(pl.Float32).to_numpy()
        if log.weight:
            columns["weight"] = chunk[WEIGHT].cast(pl.Float32).fill_null(1.0).to_numpy()
        if log.request:
            columns["request"] = request_keys(chunk[REQUEST].rename(log.request))
        if self.contract.history.given:
            columns[GIVEN] = self._lists(chunk[GIVEN])
        return columns

    @property
    def _file(self) -> tuple[str, ...]:
        return (SPLIT,) if self.contract.split.by == "files" else ()

    def _event_encoders(self) -> Iterator[tuple[str, ColumnEncoder]]:
        """Event columns that are read from the log; the others are computed from its order."""
        specs = self.contract.history.columns
        return ((name, one) for name, one in self.encoder.event.items() if specs[name].type not in ("gap", "residual"))

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
        # 64 bits: the lists of one bucket together may hold more than 2^31 items.
        offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        return pa.LargeListArray.from_arrays(to_arrow(offsets), to_arrow(items))


def _column(chunk: pl.DataFrame, prefix: str, name: str) -> pl.Series:
    return chunk[prefix + name].rename(name)


def request_keys(raw: pl.Series) -> np.ndarray:
    """One int64 a request, the same in every build: whole numbers as they are, of text 63 bits of its sha256.

    Rows without a request id get -1.
    """
    keys = canonical(raw)
    if keys.dtype != pl.String:
        return keys.cast(pl.Int64).fill_null(-1).to_numpy()
    distinct = keys.unique().drop_nulls()
    hashed = [int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1 for text in distinct.to_list()]
    if not hashed:
        return np.full(len(keys), -1)
    return keys.replace_strict(
        distinct, pl.Series(hashed, dtype=pl.Int64), default=-1, return_dtype=pl.Int64
    ).to_numpy()


def _with_negatives(columns: Arrays, drawn_RK: np.ndarray) -> Arrays:
    """Each row followed by its negatives: the same in everything but item and labels, neither logged nor an event."""
    rows, k = drawn_RK.shape
    place = np.repeat(np.arange(rows), k + 1)
    item = np.concatenate([np.asarray(columns["item"])[:, None], drawn_RK], axis=1).reshape(-1)
    sampled = np.tile(np.r_[False, np.ones(k, bool)], rows)
    kept = item != NONE
    place, item, sampled = place[kept], item[kept], sampled[kept]
    repeated: Arrays = {name: taken(values, place) for name, values in columns.items()}
    # Taken by index, so these are copies.
    repeated[EVENT][sampled] = False
    repeated[LOGGED][sampled] = False
    for name in columns:
        if name == "label" or name.startswith(LABEL_PREFIX):
            repeated[name][sampled] = 0.0
    return repeated | {"item": item}


def _blank(like: Column, rows: int) -> Column:
    if isinstance(like, pa.LargeListArray):
        return pa.array([[]] * rows, like.type)
    if like.dtype.kind == "f":
        return np.full(rows, np.nan, like.dtype)
    return np.zeros(rows, like.dtype)
