"""Rows of a table as requests for scoring: encoded by column, with the functions of a build.

Shapes: R rows, Q requests: what rows have in common (user, context, history) is one request.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from features.encoding.base import ColumnEncoder
from features.encoding.encoder import Encoder
from features.encoding.number import numbers
from features.encoding.past import ITEM, TIME
from features.errors import ConfigError, DataError
from features.point_in_time.relative import encoded_relative
from features.requests.past_columns import RequestEncoder
from features.requests.past_table import USER, Histories, PastTable, with_names
from features.requests.raw_columns import log_time
from features.sources.times import microseconds
from features.store.schema import UNKNOWN

HISTORY = "history"


@dataclass(frozen=True)
class RequestRows:
    """R rows that ask for a score, as Q requests.

    Args:
        request_R: which request each row belongs to, int64.
        shared: user and context columns by the graph's names, int64 or float32 [Q], int64 [Q, max_len] for tags.
        histories: of the Q requests.
        item_R: candidates, int64.
        candidate: numbers of the candidates by name, float32 [R].
        unknown: rows whose item the model has never seen.
        missing: how many rows lack a context column that the model was trained on, by column.
    """

    request_R: np.ndarray
    shared: dict[str, np.ndarray]
    histories: Histories
    item_R: np.ndarray
    candidate: dict[str, np.ndarray]
    unknown: int
    missing: dict[str, int]


class RowEncoder:
    """Encodes tables of rows to score.

    A row has `user` and `item`, and may have `time` (default: when the encoder was made), context columns and counters
    by their names. Its history is that of `pasts` at its time, or the list column `history` beside
    `history_<column>`, oldest first; or there is none. Where the model compares candidates, a row has the request's id
    by its name in the log.

    Args:
        encoder: of a bundle.
        columns: of the table.
        pasts: events of the users.

    Raises:
        DataError: a column that lacks.
        ConfigError: histories given twice.
    """

    def __init__(self, encoder: Encoder, columns: pl.Schema, pasts: PastTable | None = None) -> None:
        self.encoder = encoder
        self.pasts = pasts
        log = encoder.contract.interactions
        self._named = {USER: log.user, ITEM: log.item} | ({TIME: log.time} if log.time else {})
        self._now = time.time_ns() // 1000
        names = set(with_names(pl.LazyFrame(schema=columns), self._named).collect_schema().names())
        for name in (USER, ITEM):
            if name not in names:
                raise DataError(
                    f"no column {name!r}. A row to score needs `user` and `item`; it may have `time`, context "
                    "columns and counters by their names."
                )
        self.request = log.request if encoder.relative else None
        if self.request is not None and self.request not in names:
            raise DataError(
                f"no column {self.request!r}. The model compares the candidates of a request with each other "
                f"({', '.join(encoder.relative)}): name the request that each row belongs to."
            )
        self._lists = HISTORY in names
        if self._lists and pasts is not None:
            raise ConfigError(f"rows have a column `{HISTORY}`, but --events gives histories too. Leave one out.")
        lacking = [f"{HISTORY}_{name}" for name in encoder.event if f"{HISTORY}_{name}" not in names]
        if self._lists and lacking:
            raise DataError(
                f"no column {lacking[0]!r}. The model was trained on it: give it as a list beside "
                f"`{HISTORY}`, or give the raw events with --events, from which it is computed."
            )
        self._of_time = RequestEncoder(encoder).context_of_time

    def list_numbers(self, table: pl.DataFrame) -> np.ndarray:
        """Which list each row of a table belongs to, int64 [R]: rows of one user and request id are compared.

        A row without a request id is a list of its own.
        """
        ids = self.list_ids(table)
        number_R = ids.select(pl.struct(pl.all()).rank("dense").cast(pl.Int64)).to_series().to_numpy()
        return np.where(ids[self.request or ""].is_null().to_numpy(), -1 - np.arange(len(table)), number_R)

    def list_ids(self, table: pl.DataFrame) -> pl.DataFrame:
        """What tells the lists of a table apart: user and request id."""
        return with_names(table.lazy(), self._named).select(USER, self.request or "").collect()

    def encode(self, table: pl.DataFrame) -> RequestRows:
        """Encode some rows of the table; where the model compares candidates, all rows of a request.

        Raises:
            DataError: values of a type that the log does not have, or lists of unequal length.
        """
        encoder = self.encoder
        table = with_names(table.lazy(), self._named).collect()
        user_R = encoder.users.encode(table[USER]).astype(np.int64)
        item_R = encoder.items.encode(table[ITEM]).astype(np.int64)
        moment_R = self._moments(table)
        user = {name: encoder.user_table[name][user_R] for name in encoder.user}
        context, missing = {}, {}
        for name in encoder.contract.interactions.context:
            context[name], missing[name] = self._context(name, table, moment_R)
        parts = encoder.other_parts(user_R, user, context)
        counted = {
            name: self._counted(name, one, table, item_R, parts, moment_R)
            for name, one in {**encoder.context, **encoder.candidate}.items()
            if name in encoder.contract.counters
        }
        context |= {name: counted[name] for name in encoder.context if name in counted}
        shared = {f"user_{name}": values for name, values in user.items()}
        shared |= {f"context_{name}": values for name, values in context.items()}
        if self.pasts is not None:
            histories = self.pasts.histories(table[USER], moment_R)
            told_apart = [np.stack([histories.end_R, histories.length_R], axis=1)]
        else:
            histories = self._given(table)
            told_apart = _contents(histories)
        candidate = {name: counted[name] for name in encoder.candidate}
        if encoder.relative:
            candidate |= encoded_relative(encoder, candidate, item_R, self.list_numbers(table))
        request_R, first_Q = _distinct([user_R, *shared.values(), *told_apart])
        return RequestRows(
            request_R=request_R,
            shared={name: _wide(values[first_Q]) for name, values in shared.items()},
            histories=Histories(
                histories.item_E, histories.columns, histories.end_R[first_Q], histories.length_R[first_Q]
            ),
            item_R=item_R,
            candidate=candidate,
            unknown=int((item_R == UNKNOWN).sum()),
            missing={name: count for name, count in missing.items() if count},
        )

    def _moments(self, table: pl.DataFrame) -> np.ndarray:
        if TIME not in table.columns:
            return np.full(len(table), self._now)
        log = self.encoder.contract.interactions
        column = microseconds(table.lazy(), "rows", TIME, log.time_unit, log.time_format)
        found = table.select(column).to_series()
        if found.null_count():
            wrong = table[TIME].filter(found.is_null())[0]
            raise DataError(
                f"column {TIME!r}: {wrong!r} is no time. Write times as the log has them, or leave the "
                "column out for now."
            )
        return found.to_numpy()

    def _context(self, name: str, table: pl.DataFrame, moment_R: np.ndarray) -> tuple[np.ndarray, int]:
        """A context column of the log, encoded, and how many rows do not give it."""
        encoder = self.encoder.context[name]
        if name in table.columns:
            raw = table[name]
            # A file may write a missing number as NaN.
            return encoder.encode(raw), (raw.fill_nan(None) if raw.dtype.is_float() else raw).null_count()
        spec = self.encoder.contract.interactions.context[name]
        if name in self._of_time:
            return encoder.encode(self._computed(name, moment_R)), 0
        value = np.repeat(encoder.encode_one(spec.default), len(table), axis=0)
        return value, len(table) if spec.default is None else 0

    def _computed(self, name: str, moment_R: np.ndarray) -> pl.Series:
        """A context column that tells the time alone."""
        contract, column = self.encoder.contract, self._of_time[name]
        timed = str(contract.interactions.time)
        found = log_time(moment_R, self.encoder.log_columns[timed], contract)
        return (found if column is None else found.to_frame(timed).select(column).to_series()).rename(name)

    def _counted(
        self,
        name: str,
        encoder: ColumnEncoder,
        table: pl.DataFrame,
        item_R: np.ndarray,
        parts: Mapping[str, np.ndarray],
        moment_R: np.ndarray,
    ) -> np.ndarray:
        """A counter, encoded: as a row says, else as it stood at the end of the log."""
        snapshot, counter = self.encoder.snapshot, self.encoder.contract.counters[name]
        known_R = snapshot.values(name, counter, item_R, parts, moment_R)
        return encoder.encode_many(_given_or(table, name, known_R))

    def _given(self, table: pl.DataFrame) -> Histories:
        """Histories of the list columns, cut to their newest events; empty ones without such columns."""
        if not self._lists:
            nothing = np.zeros(len(table), np.int64)
            events = {name: _wide(one.encode(pl.Series(name, [], pl.Null))) for name, one in self.encoder.event.items()}
            return Histories(np.empty(0, np.int64), events, nothing, nothing)
        newest = self.encoder.schema.history_max_len
        items, length_R = _flat(table[HISTORY], newest)
        columns = {}
        for name, encoder in self.encoder.event.items():
            values, lengths_R = _flat(table[f"{HISTORY}_{name}"], newest)
            if not np.array_equal(lengths_R, length_R):
                place = int(np.argmax(lengths_R != length_R))
                raise DataError(
                    f"column '{HISTORY}_{name}': {lengths_R[place]} values beside {length_R[place]} items of "
                    f"`{HISTORY}`. Give each event one value, null where it is missing."
                )
            columns[name] = _wide(encoder.encode(values.rename(name)))
        return Histories(
            self.encoder.items.encode(items).astype(np.int64), columns, np.cumsum(length_R, dtype=np.int64), length_R
        )


def _given_or(table: pl.DataFrame, name: str, known_R: np.ndarray) -> np.ndarray:
    """Numbers of a column, and what is known where the table does not give them, float64 [R]."""
    if name not in table.columns:
        return known_R.astype(np.float64)
    given_R = numbers(table[name])
    return np.where(np.isnan(given_R), known_R, given_R)


def _flat(lists: pl.Series, newest: int) -> tuple[pl.Series, np.ndarray]:
    """The newest entries of lists one after the other, and how many each has, int64 [R]."""
    if lists.dtype == pl.Null:  # no row has one
        lists = lists.cast(pl.List(pl.Null))
    if not isinstance(lists.dtype, pl.List | pl.Array):
        raise DataError(
            f"column {lists.name!r}: holds {lists.dtype}, expected lists, one entry an event, oldest first."
        )
    cut = (lists.arr.to_list() if isinstance(lists.dtype, pl.Array) else lists).fill_null([]).list.tail(newest)
    return cut.explode(empty_as_null=False), cut.list.len().to_numpy().astype(np.int64)


def _contents(histories: Histories) -> list[np.ndarray]:
    """What tells histories of lists apart: items and event columns, padded, [R, H] each, and lengths."""
    length_R, end_R = histories.length_R, histories.end_R
    longest = int(length_R.max(initial=0))
    place_RH = end_R[:, None] - np.arange(longest, 0, -1)
    inside_RH = np.arange(longest, 0, -1) <= length_R[:, None]
    if not len(histories.item_E):
        return [length_R]
    columns = (histories.item_E, *histories.columns.values())
    return [length_R, *(np.where(inside_RH, column_E[place_RH], 0) for column_E in columns)]


def _distinct(columns: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Number of each row among the distinct rows, int64 [R], and the first row of each, int64 [Q]."""
    rows = len(columns[0])
    parts = [np.ascontiguousarray(column.reshape(rows, -1)).view(np.uint8) for column in columns]
    keys = np.ascontiguousarray(np.concatenate(parts, axis=1))
    whole = keys.view(np.dtype((np.void, keys.shape[1]))).ravel()
    _, first_Q, request_R = np.unique(whole, return_index=True, return_inverse=True)
    return request_R, first_Q


def _wide(values: np.ndarray) -> np.ndarray:
    return values if values.dtype == np.float32 else values.astype(np.int64)
