"""What the raw log knew of users and items at instants of the past: events, and counters as the build counts them.

Shapes: N candidates, R rows of the log, Q questions to a counter.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from features.checks.check_log import check_log
from features.checks.history_tables import checked_events
from features.chunk import CONTEXT, EVENT, HISTORY, ITEM, LABEL, LABELS, NUMBERS, RAW, REQUEST, TIME, USER
from features.contract.columns import Residual
from features.contract.event_columns import event_columns
from features.encoding.encoder import Encoder
from features.encoding.past import PastEvent
from features.encoding.vocabulary import Vocabulary
from features.errors import DataError
from features.fitting.fit import Tables
from features.point_in_time.counted_rows import amount_of
from features.point_in_time.counters import running
from features.point_in_time.instants import names_in, request_columns
from features.point_in_time.newest_events import plain_columns
from features.sources.log import open_log
from features.store.schema import FIRST_VALUE

_INSTANT = "_instant"  # as of when an event's row knew the past, µs
_PLACE = "_place"  # of a row among those that were read
_LIST = "_list"  # items of a row's request


@dataclass(frozen=True)
class Asked:
    """A user, None for an unknown one, and candidates at an instant (µs since 1970); raw ids.

    `columns` are encoded user and context columns of the request, [1], for counters that have them in their keys.
    """

    user: Any
    time: int
    candidates: tuple[Any, ...]
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Known:
    """What the log knew.

    Args:
        past: the user's events strictly before the instant, each with the item counters that it came with.
        items: counters of the candidates by name, float64 [N], NaN where they have no value.
        users: the other counters by name.
    """

    past: tuple[PastEvent, ...]
    items: dict[str, np.ndarray]
    users: dict[str, float]


@dataclass(frozen=True)
class LoggedRows:
    """What the log says of R of its rows.

    Args:
        instant_R: as of when each knows the past, µs: its time, or that of its request's earliest row.
        context: encoded context columns by name, [R] or [R, max_len].
        lists: items of all rows of each one's request, its own among them, where candidates are compared; else empty.
    """

    instant_R: np.ndarray
    context: dict[str, np.ndarray]
    lists: tuple[tuple[Any, ...], ...] = ()


class AsLogged:
    """Answers from a raw log. Memory holds the rows of the users and items that are asked for.

    Args:
        encoder: of a bundle: its counters' mean is what a key without rows has.
        log: checked, under fixed names, with the raw columns that events have.
        tables: events of `history.tables`.
    """

    def __init__(self, encoder: Encoder, log: pl.LazyFrame, tables: tuple[pl.LazyFrame, ...]) -> None:
        self._encoder, self._contract = encoder, encoder.contract
        self._log, self._tables = log, tables
        # As in a build, a request ends with its day or file where days or files are built one by one.
        self._request = request_columns(self._contract) if self._contract.interactions.request else ()
        self._beside = [name for name in names_in(self._request) if name not in (USER, ITEM, TIME)]

    def known(self, asked: Sequence[Asked]) -> list[Known]:
        """What the log knew of each, in one or two passes over it."""
        users = list({one.user for one in asked if one.user is not None})
        events = self._events(users)
        counters = self._contract.counters
        item_names = [name for name, counter in counters.items() if counter.of == "item"]
        user_names = [name for name, counter in counters.items() if counter.of == "user"]
        keyed = {name: self._keyed(name, asked) for name in counters if name not in (*item_names, *user_names)}
        items = [(item, one.time) for one in asked for item in one.candidates]
        of_items = self._counted(item_names, ITEM, [*items, *zip(events[ITEM], events[_INSTANT], strict=True)])
        of_users = self._counted(user_names, USER, [(one.user, one.time) for one in asked])
        residual = {spec.counter for spec in self._contract.history.columns.values() if isinstance(spec, Residual)}
        pasts = self._pasts(events, {name: of_items[name][len(items) :] for name in sorted(residual)})
        candidates = {**of_items, **keyed}
        others = {**of_users, **keyed}
        found, first = [], 0
        for place, one in enumerate(asked):
            mine = slice(first, first := first + len(one.candidates))
            found.append(
                Known(
                    past=tuple(event for event in pasts.get(one.user, ()) if event.time < one.time),
                    items={name: candidates[name][mine] for name in self._contract.candidate_counters},
                    users={name: float(others[name][place]) for name in self._contract.context_counters},
                )
            )
        return found

    def rows(self, users: Sequence[Any], items: Sequence[Any], times: np.ndarray) -> LoggedRows:
        """What the log says of some of its rows, context columns encoded as the build encodes them.

        A row is found by user, item and time; of several, the first. A negative that a build drew stands in no log: it
        has the context of its user's row at its time.

        Args:
            users, items: raw ids, R of each.
            times: of the rows, µs since 1970, int64 [R].

        Raises:
            DataError: the log has no row of a user at a time.
        """
        names = list(self._contract.interactions.context)
        frame = self._log.select(
            self._key(USER), self._key(ITEM), TIME, *self._beside, *(CONTEXT + name for name in names)
        )
        theirs = frame.filter(pl.col(USER).is_in(list(set(users)))).with_columns(_instant(self._request))
        if self._encoder.relative and self._request:
            whole, alone = pl.col(ITEM).implode().over(*self._request), pl.concat_list(ITEM)
            theirs = theirs.with_columns(pl.when(pl.col(REQUEST).is_null()).then(alone).otherwise(whole).alias(_LIST))
        here = pl.col(TIME).is_between(int(times.min()), int(times.max()))
        logged = theirs.filter(here).collect(engine="streaming").with_row_index(_PLACE)
        asked = pl.DataFrame(
            {USER: list(users), ITEM: list(items), TIME: times}, schema=logged.select(USER, ITEM, TIME).schema
        )
        own, beside = (
            asked.join(
                logged.unique(keys, keep="first", maintain_order=True).select(*keys, _PLACE),
                on=keys,
                how="left",
                maintain_order="left",
            )[_PLACE]
            for keys in ([USER, ITEM, TIME], [USER, TIME])
        )
        place = own.zip_with(own.is_not_null(), beside)
        if place.null_count():
            user, item, moment = asked.filter(place.is_null()).row(0)
            path = self._contract.resolve(self._contract.interactions.path)
            raise DataError(
                f"{path}: lacks {place.null_count()} of {len(place)} rows of the feature set, e.g. user {user!r}, "
                f"item {item!r}, time {moment} µs. The log has changed: build again with `quadrank features`."
            )
        found = logged[place]
        context = {name: self._encoder.context[name].encode(found[CONTEXT + name].rename(name)) for name in names}
        lists = tuple(map(tuple, found[_LIST].to_list())) if _LIST in found.columns else ()
        return LoggedRows(found[_INSTANT].to_numpy(), context, lists)

    def _events(self, users: list[Any]) -> pl.DataFrame:
        """Events of these users in the order of the log: `_user _item _time _instant` and raw columns."""
        raw = [name for name in self._log.collect_schema().names() if name.startswith(RAW)]
        rows = (
            self._log.select(self._key(USER), self._key(ITEM), TIME, EVENT, *self._beside, *raw)
            .filter(pl.col(USER).is_in(users))
            .collect(engine="streaming")
        )
        parts = [rows.with_columns(_instant(self._request)).filter(EVENT).drop(EVENT, *self._beside)]
        standing_for = {RAW + name: pl.col(HISTORY + column) for column, name in plain_columns(self._contract).items()}
        for table in self._tables:
            chosen = table.select(self._key(USER), self._key(ITEM), TIME, **standing_for)
            earlier = chosen.filter(pl.col(USER).is_in(users)).collect(engine="streaming")
            parts.append(earlier.with_columns(pl.col(TIME).alias(_INSTANT)))
        return pl.concat(parts, how="diagonal_relaxed")

    def _pasts(self, events: pl.DataFrame, counted: dict[str, np.ndarray]) -> dict[Any, list[PastEvent]]:
        """Events by user, each with its raw columns and the counters that residuals read."""
        raw = [name for name in events.columns if name.startswith(RAW)]
        columns = {name.removeprefix(RAW): events[name].to_list() for name in raw}
        columns |= {name: values.tolist() for name, values in counted.items()}
        found: dict[Any, list[PastEvent]] = {}
        for place, (user, item, time) in enumerate(events.select(USER, ITEM, TIME).iter_rows()):
            values = {name: column[place] for name, column in columns.items() if column[place] is not None}
            found.setdefault(user, []).append(PastEvent(item, time, values))
        return found

    def _counted(self, names: list[str], column: str, asked: list[tuple[Any, int]]) -> dict[str, np.ndarray]:
        """Each counter of these keys at these instants, float64 [Q] by name."""
        if not names:
            return {}
        keys = {key: number for number, key in enumerate(dict.fromkeys(key for key, _ in asked))}
        wanted = [key for key in keys if key is not None]
        amounts = {amount_of(name, self._contract.counters[name]) for name in names}
        chosen = self._log.select(self._key(column), TIME, *map(_amount, sorted(amounts)))
        rows = chosen.filter(pl.col(column).is_in(wanted)).collect(engine="streaming")
        key_R = np.array([keys[key] for key in rows[column].to_list()], np.int64)
        key_Q = np.array([keys[key] for key, _ in asked], np.int64)
        instant_Q = np.array([time for _, time in asked], np.int64)
        return {name: self._at(name, rows, key_R, key_Q, instant_Q) for name in names}

    def _keyed(self, name: str, asked: Sequence[Asked]) -> np.ndarray:
        """A counter by columns, or by several ids, at each candidate, float64 [Q], or at each question without them.

        Ids that the bundle does not know have no such counter.
        """
        encoder, counter = self._encoder, self._contract.counters[name]
        snapshot, sides = encoder.snapshot, self._contract.counter_sides
        context = [key for key in counter.keys if sides[key] == "context"]
        frame = self._log.select(
            self._key(USER),
            self._key(ITEM),
            TIME,
            _amount(amount_of(name, counter)),
            *(CONTEXT + key for key in context),
        )
        of_items = name in self._contract.candidate_counters
        item_Q = [item for one in asked for item in one.candidates] if of_items else [None] * len(asked)
        times = [len(one.candidates) if of_items else 1 for one in asked]
        user_Q = [one.user for one, count in zip(asked, times, strict=True) for _ in range(count)]
        for key, column, ids in (("user", USER, user_Q), ("item", ITEM, item_Q)):
            if key in counter.keys:
                frame = frame.filter(pl.col(column).is_in([one for one in set(ids) if one is not None]))
        rows = frame.collect(engine="streaming")
        user_R = encoder.users.encode(rows[USER]).astype(np.int64)
        item_R = encoder.items.encode(rows[ITEM]).astype(np.int64)
        others_R = {key: encoder.context[key].encode(rows[CONTEXT + key].rename(key)) for key in context} | {
            "user": user_R
        }
        others_R |= {key: encoder.user_table[key][user_R] for key in counter.keys if sides[key] == "user" != key}
        user_rows_Q = encoder.users.indices(user_Q)
        others_Q = {
            key: np.concatenate([np.repeat(one.columns[key], count) for one, count in zip(asked, times, strict=True)])
            for key in counter.keys
            if sides[key] != "item" and key != "user"
        } | {"user": user_rows_Q}
        item_rows_Q = encoder.items.indices(item_Q)
        key_R = snapshot.combined(name, counter, item_R, others_R)
        key_Q = snapshot.combined(name, counter, item_rows_Q, others_Q)
        instant_Q = np.repeat([one.time for one in asked], times)
        unknown_Q = np.zeros(len(key_Q), bool)
        for key, row_Q in (("user", user_rows_Q), ("item", item_rows_Q)):
            if key in counter.keys:
                unknown_Q |= row_Q < FIRST_VALUE
        return self._at(name, rows, key_R, np.where(unknown_Q, -1, key_Q), instant_Q)

    def _at(
        self, name: str, rows: pl.DataFrame, key_R: np.ndarray, key_Q: np.ndarray, instant_Q: np.ndarray
    ) -> np.ndarray:
        """A counter of these rows at keys and instants, float64 [Q]."""
        counter = self._contract.counters[name]
        amount_R, time_R = rows[amount_of(name, counter)].to_numpy(), rows[TIME].to_numpy()
        every = running(
            np.r_[key_R, key_Q],
            np.r_[time_R, instant_Q],
            np.r_[amount_R, np.full(len(key_Q), np.nan)],
            counter,
            self._encoder.snapshot.mean_of(counter),
            np.r_[np.ones(len(key_R), bool), np.zeros(len(key_Q), bool)],
        )
        return every[len(key_R) :]

    def _key(self, column: str) -> pl.Expr:
        """The id column in the type that the catalogue has."""
        ids: Vocabulary = self._encoder.items if column == ITEM else self._encoder.users
        return pl.col(column).cast(pl.Int64 if ids.whole_numbers else pl.String)


def _instant(request: tuple[pl.Expr, ...]) -> pl.Expr:
    """As of when a row knows the past, µs: its time; with columns that tell requests apart, its request's earliest."""
    instant = pl.col(TIME)
    if request:
        instant = pl.when(pl.col(REQUEST).is_null()).then(instant).otherwise(instant.min().over(*request))
    return instant.alias(_INSTANT)


def _amount(column: str) -> pl.Expr:
    """What a counter adds up, under the name that `amount_of` gives it, NaN where missing."""
    section, _, name = column.partition("/")
    raw = {"label": LABEL, "labels": LABELS + name, "numbers": NUMBERS + name}[section]
    return pl.col(raw).cast(pl.Float64).fill_null(float("nan")).alias(column)


@contextmanager
def open_as_logged(encoder: Encoder) -> Iterator[AsLogged]:
    """The raw log of a bundle's contract, rows of a quarantine left out.

    Raises:
        DataError: as the build; the log cannot be read.
    """
    contract = encoder.contract
    log = open_log(contract, raw_columns=event_columns(contract))
    with tempfile.TemporaryDirectory(prefix="quadrank-replay-") as scratch:
        if contract.checks.quarantines:
            known = Tables.read(contract).ids(contract)
            log = replace(log, frame=check_log(log, contract, *known, Path(scratch)).frame)
        yield AsLogged(encoder, log.frame, checked_events(contract)[0])
