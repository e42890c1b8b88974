"""A user's past as the log has it, to the history of a request: the rules of a feature set, for one row.

The functions are those that build feature sets, so a server cannot disagree with what a model was trained on.

Shapes: H events of the past, S of them in the history, R = H + 1: the events and the request, by time.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl

from features.contract.columns import ColumnSpec, DatePart, Gap, Residual
from features.encoding.base import ColumnEncoder
from features.encoding.encoder import EncodedHistory, EncodedRequest, Encoder
from features.encoding.past import Past, PastEvent
from features.encoding.raw_values import ids_at, known_keys
from features.encoding.request import Request
from features.encoding.snapshot import Snapshot
from features.errors import ConfigError, DataError
from features.point_in_time.history import gap_seconds, history_spans, without_repeats
from features.point_in_time.relative import encoded_relative
from features.requests.raw_columns import Given, RawColumns, RawEvents, log_time
from features.sources.labelled import columns_in
from features.sources.tables import expression
from features.store.schema import UNKNOWN


class RequestEncoder:
    """Encodes requests, their pasts as the log has them included. Safe to share between threads.

    Args:
        encoder: of a bundle or a feature set.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder

    def encode(
        self, request: Request, past: Sequence[PastEvent] = (), snapshot: Snapshot | None = None
    ) -> EncodedRequest:
        """Raw ids and values to rows, indices and numbers.

        Args:
            request: parsed.
            past: what a source of pasts knows of the user. It is added to events that the request has as the log does,
                or takes their place; where the request brings ready columns, these stand alone.
            snapshot: of counters, fresher than the encoder's.

        Raises:
            ConfigError: a value of a type that its column does not have, or an event with an unknown key.
        """
        moment = time.time_ns() // 1000 if request.time is None else request.time
        request = self._with_context(request if request.time == moment else replace(request, time=moment), moment)
        if request.past is None and (request.history or not past):
            return self._with_relative(self.encoder.encode_request(request, snapshot=snapshot))
        whole = Past.of(past) if request.past is None else request.past.with_source(past)
        history = self.history(whole, moment, snapshot, request.user)
        return self._with_relative(self.encoder.encode_request(request, history, snapshot))

    def history(self, past: Past, moment: int, snapshot: Snapshot | None = None, user: Any = None) -> EncodedHistory:
        """The history that a row of this user and time would have.

        Args:
            past: events of the user, in any order; later ones than the request are left out.
            moment: time of the request, µs since 1970.
            snapshot: of counters, for events that do not say what theirs was; default the encoder's.
            user: raw id.

        Raises:
            ConfigError: as `encode`.
        """
        rules = self.encoder.contract.history
        self._refuse_unknown_keys(past)
        events = RawEvents(self.columns, past, (user,) * len(past.items))
        rows_H = self.encoder.item_rows("history", past.items)
        place_R = _by_time(past, moment)
        time_R = _with_last(past.time_H, moment)[place_R]
        user_R = np.zeros(len(place_R), np.int64)
        is_event_H = events.is_event()
        is_event_R = _with_last(is_event_H, False)[place_R]
        if rules.repeats != "keep":
            item_R = _with_last(_distinct(rows_H, past.items), UNKNOWN)[place_R]
            is_event_R = without_repeats(user_R, item_R, is_event_R, rules.repeats)
        end_R, length_R = history_spans(
            user_R,
            time_R,
            is_event_R,
            self.encoder.schema.history_max_len,
            rules.within,
            rules.session_gap,
            delay=rules.delay or 0,
        )
        now = int(place_R.argmax())
        chosen_S = np.flatnonzero(is_event_R)[end_R[now] - length_R[now] : end_R[now]]
        place_S = place_R[chosen_S]
        columns, missing = {}, self._unfiltered(events, is_event_H)
        for name, encoder in self.encoder.event.items():
            spec, lacking = rules.columns[name], 0
            if isinstance(spec, Gap):
                columns[name] = encoder.encode_many(gap_seconds(user_R, time_R, is_event_R)[chosen_S])
            elif isinstance(spec, Residual):
                residual_H = self._residual(events, spec, rows_H, snapshot or self.encoder.snapshot)
                columns[name] = encoder.encode_many(residual_H[place_S])
                lacking = int(np.count_nonzero(np.isnan(events.label[place_S])))
            else:
                columns[name], lacking = _encoded(events, name, spec, encoder, place_S)
            missing[name] = max(lacking, missing.get(name, 0))
        return EncodedHistory(
            items=tuple(ids_at(past.items, place_S)),
            rows=rows_H[place_S],
            events=columns,
            missing={name: lacking for name, lacking in missing.items() if lacking},
            newest=int(time_R[chosen_S[-1]]) if len(chosen_S) else None,
        )

    def check(self, events: RawEvents) -> None:
        """Raise ConfigError for an event of which a history's columns cannot be made."""
        every_H = np.arange(len(events.past.time_H))
        for name, spec in self.encoder.contract.history.columns.items():
            if not isinstance(spec, Gap | Residual):
                _encoded(events, name, spec, self.encoder.event[name], every_H)

    @cached_property
    def context_of_time(self) -> dict[str, pl.Expr | None]:
        """Context columns that tell no more than the request's time, each with its expression; None for a date part.

        One with a default keeps it: that is what its contract wants for a request that gives none.
        """
        contract = self.encoder.contract
        log, found = contract.interactions, dict[str, pl.Expr | None]()
        for name, spec in log.context.items():
            text = spec.source or name
            if log.time is None or spec.default is not None or log.time not in self.encoder.log_columns:
                continue
            if columns_in(text, self.encoder.log_columns) & set(self.encoder.log_columns) != {log.time}:
                continue
            is_part = isinstance(spec, DatePart) and text == log.time
            raw = pl.LazyFrame(schema=self.encoder.log_columns)
            where = f"interactions.context.{name}"
            found[name] = None if is_part else expression(raw, "the request's time", where, text)
        return found

    @cached_property
    def columns(self) -> RawColumns:
        """How raw events are read. Raises ConfigError for a bundle that does not say what the log's columns are."""
        if not self.encoder.log_columns:
            raise ConfigError(
                "history[0].time: this bundle does not say what the log's columns are: an earlier version made it. "
                "Export it again, or send ready columns without times."
            )
        return RawColumns(self.encoder.contract, self.encoder.log_columns)

    def _with_relative(self, encoded: EncodedRequest) -> EncodedRequest:
        """The request with what its candidates are among each other."""
        if not self.encoder.relative:
            return encoded
        one_list_N = np.zeros(len(encoded.candidate_item), np.int64)
        relative = encoded_relative(self.encoder, encoded.candidate, encoded.candidate_item, one_list_N)
        return replace(encoded, candidate=encoded.candidate | relative)

    def _with_context(self, request: Request, moment: int) -> Request:
        lacking = [name for name in self.context_of_time if name not in request.context]
        if not lacking:
            return request
        return replace(request, context={**request.context, **{name: self._of_time(name, moment) for name in lacking}})

    def _of_time(self, name: str, moment: int) -> Any:
        contract, column = self.encoder.contract, self.context_of_time[name]
        timed = str(contract.interactions.time)
        try:
            found = log_time(np.array([moment]), self.encoder.log_columns[timed], contract)
            if column is not None:
                found = found.to_frame(timed).select(column).to_series()
            value = found.item()
        except (pl.exceptions.PolarsError, ValueError, OverflowError) as error:
            raise ConfigError(f"time: context.{name} cannot be computed of it: {str(error).splitlines()[0]}.") from None
        return value.isoformat() if isinstance(value, date) else value

    def _refuse_unknown_keys(self, past: Past) -> None:
        """A source of pasts may know columns that this log has not; a client that sends them has mistyped one."""
        sent = past.columns[: past.sent]
        if not self.columns.known.issuperset(past.names):
            for i, keys in enumerate(sent):
                known_keys(f"history[{i}]", keys, self.columns.known)

    def _unfiltered(self, events: RawEvents, is_event_H: np.ndarray) -> dict[str, int]:
        """How many events are left out and lack a column that `history.events` reads, by raw column."""
        lacking = events.lacking(self.columns.events_read)
        return {name: int((lacks_H & ~is_event_H).sum()) for name, lacks_H in lacking.items()}

    def _residual(self, events: RawEvents, spec: Residual, rows_H: np.ndarray, snapshot: Snapshot) -> np.ndarray:
        """Each event's label less its item's counter: as the event says, else as it stands now. float64 [H]."""
        given_H = events.numbers(spec.counter)
        return events.label - np.where(np.isnan(given_H), snapshot.items[spec.counter][rows_H], given_H)


def _by_time(past: Past, moment: int) -> np.ndarray:
    """Places of the events, and of the request (H), by time, int64 [R].

    Of one instant, events of a source stand before those that were sent, each in its own order. The request stands last
    of its instant, whose events it does not know.
    """
    time_R = _with_last(past.time_H, moment)
    if past.sent == len(past.items):
        return time_R.argsort(kind="stable")
    rank_R = np.ones(len(time_R), np.int8)
    rank_R[past.sent : -1] = 0
    return np.lexsort((rank_R, time_R))


def _with_last(values_H: np.ndarray, last: Any) -> np.ndarray:
    """The values of the events, and one of the request behind them, [R]."""
    values_R = np.empty(len(values_H) + 1, values_H.dtype)
    values_R[:-1], values_R[-1] = values_H, last
    return values_R


def _distinct(rows_H: np.ndarray, items: tuple[Any, ...]) -> np.ndarray:
    """A number for each item, int64 [H]: its row, and one of its own below 0 for each unknown id."""
    number_H, numbers = rows_H.copy(), dict[Any, int]()
    for place in np.flatnonzero(rows_H == UNKNOWN).tolist():
        number_H[place] = -1 - numbers.setdefault(items[place], len(numbers))
    return number_H


def _encoded(
    events: RawEvents, name: str, spec: ColumnSpec, encoder: ColumnEncoder, place_S: np.ndarray
) -> tuple[np.ndarray, int]:
    """A column of the events at these places, int64 or float32 [S], and how many of them do not give it."""
    reading = events.reading.columns[name]
    if isinstance(reading, Given) and reading.name != events.reading.contract.interactions.time:
        values = events.values(reading.name, spec)
        encoder.check_many(f"history[{{}}].{name}", values)
        chosen = [values[place] for place in place_S.tolist()]
        return encoder.encode_many(chosen), chosen.count(None)
    if reading is None:
        label_S = events.label[place_S]
        if not np.isnan(label_S).any():
            return encoder.encode_many(label_S.astype(np.int64)), 0
        chosen = [None if label != label else int(label) for label in label_S.tolist()]
        return encoder.encode_many(chosen), chosen.count(None)
    found = events.computed(reading)[place_S].rename(name)
    try:
        encoded = encoder.encode(found)
    except DataError as error:
        raise ConfigError(f"history: {error}") from None
    return encoded.astype(np.float32 if encoded.dtype == np.float32 else np.int64), found.null_count()
