"""What the raw log knew of users and items at instants of the past: events, and counters as the build counts them.

Shapes: N candidates, R rows of the log, Q questions to a counter.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from features.checks.check_log import check_log
from features.checks.history_tables import checked_events
from features.chunk import EVENT, HISTORY, ITEM, LABEL, RAW, REQUEST, TIME, USER
from features.contract.columns import Residual
from features.contract.event_columns import event_columns
from features.contract.log import Counter
from features.encoding.encoder import Encoder
from features.encoding.past import PastEvent
from features.encoding.vocabulary import Vocabulary
from features.fitting.fit import Tables
from features.point_in_time.counters import running
from features.point_in_time.newest_events import plain_columns
from features.sources.log import open_log

_INSTANT = "_instant"  # as of when an event's row knew the past, µs


@dataclass(frozen=True)
class Asked:
    """A user, None for an unknown one, and candidates at an instant (µs since 1970); raw ids."""

    user: Any
    time: int
    candidates: tuple[Any, ...]


@dataclass(frozen=True)
class Known:
    """What the log knew.

    Args:
        past: the user's events strictly before the instant, each with the item counters that it came with.
        items: counters of the candidates by name, float64 [N].
        users: counters of the user by name.
    """

    past: tuple[PastEvent, ...]
    items: dict[str, np.ndarray]
    users: dict[str, float]


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

    def known(self, asked: Sequence[Asked]) -> list[Known]:
        """What the log knew of each, in one or two passes over it."""
        users = list({one.user for one in asked if one.user is not None})
        events = self._events(users)
        counters = self._contract.counters
        item_names = [name for name, counter in counters.items() if counter.of == "item"]
        user_names = [name for name, counter in counters.items() if counter.of == "user"]
        items = [(item, one.time) for one in asked for item in one.candidates]
        of_items = self._counted(item_names, ITEM, [*items, *zip(events[ITEM], events[_INSTANT], strict=True)])
        of_users = self._counted(user_names, USER, [(one.user, one.time) for one in asked])
        residual = {spec.counter for spec in self._contract.history.columns.values() if isinstance(spec, Residual)}
        pasts = self._pasts(events, {name: of_items[name][len(items) :] for name in sorted(residual)})
        found, first = [], 0
        for place, one in enumerate(asked):
            mine = slice(first, first := first + len(one.candidates))
            found.append(
                Known(
                    past=tuple(event for event in pasts.get(one.user, ()) if event.time < one.time),
                    items={name: of_items[name][mine] for name in item_names},
                    users={name: float(of_users[name][place]) for name in user_names},
                )
            )
        return found

    def _events(self, users: list[Any]) -> pl.DataFrame:
        """Events of these users in the order of the log: `_user _item _time _instant` and raw columns."""
        raw = [name for name in self._log.collect_schema().names() if name.startswith(RAW)]
        request = [REQUEST] if self._contract.interactions.request else []
        rows = (
            self._log.select(self._key(USER), self._key(ITEM), TIME, EVENT, *request, *raw)
            .filter(pl.col(USER).is_in(users))
            .collect(engine="streaming")
        )
        instant = pl.col(TIME)
        if request:
            first = pl.col(TIME).min().over(USER, REQUEST)
            instant = pl.when(pl.col(REQUEST).is_null()).then(TIME).otherwise(first)
        parts = [rows.with_columns(instant.alias(_INSTANT)).filter(EVENT).drop(EVENT, *request)]
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
        label = pl.col(LABEL).cast(pl.Float64).fill_null(float("nan"))
        chosen = self._log.select(self._key(column), TIME, label).filter(pl.col(column).is_in(wanted))
        rows = chosen.collect(engine="streaming")
        key_R = np.array([keys[key] for key in rows[column].to_list()], np.int64)
        key_Q = np.array([keys[key] for key, _ in asked], np.int64)
        instant_Q = np.array([time for _, time in asked], np.int64)
        time_R = rows[TIME].to_numpy()
        counted = np.r_[np.ones(len(key_R), bool), np.zeros(len(key_Q), bool)]
        label_RQ = np.r_[rows[LABEL].to_numpy(), np.full(len(key_Q), np.nan)]

        def at(counter: Counter) -> np.ndarray:
            mean = self._encoder.snapshot.mean
            every = running(np.r_[key_R, key_Q], np.r_[time_R, instant_Q], label_RQ, counter, mean, counted)
            return every[len(key_R) :]

        return {name: at(self._contract.counters[name]) for name in names}

    def _key(self, column: str) -> pl.Expr:
        """The id column in the type that the catalogue has."""
        ids: Vocabulary = self._encoder.items if column == ITEM else self._encoder.users
        return pl.col(column).cast(pl.Int64 if ids.whole_numbers else pl.String)


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
