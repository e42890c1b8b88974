"""A user's past as the log has it: what requests, stores of pasts and the served log hand over.

Shapes: H events.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Self

import numpy as np
import polars as pl

from features.calendar import FIRST_TIME, LAST_TIME, SECOND, microseconds_of
from features.contract.contract import Contract
from features.encoding.raw_values import ids_of
from features.encoding.time import PER_SECOND
from features.errors import ConfigError

ITEM, TIME = "item", "time"  # keys of an event
FORM = "0000-00-00T00:00:00"
ZEROS = str.maketrans("123456789", "0" * 9)


@dataclass(frozen=True)
class PastEvent:
    """One event of a user.

    Args:
        item: raw item id.
        time: µs since 1970, UTC.
        columns: raw columns of the log by name, as far as known.
    """

    item: Any
    time: int
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Past:
    """Events of one user, in any order.

    Args:
        items: raw item ids.
        time_H: µs since 1970, int64 [H].
        columns: of each event, raw columns of the log by name, as far as known.
        sent: so many of them, the first ones, came with the request.
    """

    items: tuple[Any, ...]
    time_H: np.ndarray
    columns: tuple[Mapping[str, Any], ...]
    sent: int = 0

    @classmethod
    def of(cls, events: Sequence[PastEvent]) -> Self:
        """The events of a source of pasts."""
        times = np.array([event.time for event in events], np.int64)
        return cls(tuple(event.item for event in events), times, tuple(event.columns for event in events))

    @cached_property
    def names(self) -> frozenset[str]:
        """Raw columns that at least one of the events gives; of those that came with the request, `item` and `time`."""
        return frozenset[str]().union(*self.columns)

    def with_source(self, events: Sequence[PastEvent]) -> Self:
        """These events, and those of a source of pasts that are not among them.

        An event of the same item and time is the same event; of several equal ones the first stays, one that was sent
        before one of the source. Events that were sent are all kept: a log may hold a row twice.
        """
        if not events:
            return self
        known = set(zip(self.items, self.time_H.tolist(), strict=True))
        new = []
        for event in events:
            key = (event.item, event.time)
            if key not in known:
                known.add(key)
                new.append(event)
        if not new:
            return self
        other = type(self).of(new)
        return type(self)(
            self.items + other.items,
            np.concatenate([self.time_H, other.time_H]),
            self.columns + other.columns,
            self.sent,
        )


def has_times(entries: Sequence[Any]) -> bool:
    """Whether the entries of a request's history are events with times.

    Raises:
        ConfigError: some are and others are not.
    """
    types = set(map(type, entries))
    if dict not in types:
        return False
    if types == {dict}:
        timed = [TIME in entry for entry in entries]
    else:
        timed = [isinstance(entry, dict) and TIME in entry for entry in entries]
    if not any(timed):
        return False
    if not all(timed):
        with_time, without = timed.index(True), timed.index(False)
        raise ConfigError(
            f"history[{without}]: has no `time`, but history[{with_time}] has one. Give each event its time as the log "
            "has it, or none of them: without times, entries are oldest first and carry ready columns."
        )
    return True


def parse_past(entries: Sequence[Mapping[str, Any]], contract: Contract) -> Past:
    """Events as a request has them, `{"item", "time", raw columns of the log…}`; columns are looked at when encoded.

    Raises:
        ConfigError: an event without an item, an id that cannot be one, what is no time, or a log without times.
    """
    if contract.interactions.time is None:
        raise ConfigError(
            "history[0].time: this log has no times, so events have none. Send them without, oldest first."
        )
    try:
        items = [entry[ITEM] for entry in entries]
    except KeyError:
        i = next(i for i, entry in enumerate(entries) if ITEM not in entry)
        raise ConfigError(f"history[{i}]: needs `item`, e.g. {{'item': 3, 'time': 1767225600}}.") from None
    time_H = instants("history[{}].time", [entry[TIME] for entry in entries], contract)
    return Past(ids_of("history", items, ".item"), time_H, tuple(entries), sent=len(entries))


def instants(where: str, values: Sequence[Any], contract: Contract) -> np.ndarray:
    """Times as a log may have them, µs since 1970, int64 [H].

    A whole number counts in `interactions.time_unit`; text is in `interactions.time_format` where that is declared, and
    ISO 8601 otherwise (UTC where it names no zone).

    Args:
        where: names them in messages, with `{}` for a value's number.
        values: one or several.
        contract: of the log.

    Raises:
        ConfigError: what is no time, or one beyond the years 1 to 9999.
    """
    log = contract.interactions
    factor = SECOND // PER_SECOND[log.time_unit]
    if set(map(type, values)) == {int} and _within(values, factor):
        return np.array(values, np.int64) * factor
    formatted: dict[Any, int | None] = {}
    if log.time_format is None:
        found_H = _plain_instants(values)
        if found_H is not None:
            return found_H
    else:
        texts = list({value for value in values if isinstance(value, str)})
        found = pl.Series(texts, dtype=pl.String).str.to_datetime(log.time_format, time_unit="us", strict=False)
        formatted = dict(zip(texts, found.dt.timestamp("us").to_list(), strict=True))
    found_H = np.empty(len(values), np.int64)
    for i, value in enumerate(values):
        instant = _instant(value, factor, formatted)
        if instant is None or not FIRST_TIME <= instant < LAST_TIME:
            form = f", or as {log.time_format!r}" if log.time_format else ""
            raise ConfigError(
                f"{where.replace('{}', str(i), 1)}: {value!r} is no time. Write it as the log has it: a whole number "
                f"since 1970 in {log.time_unit!r}, or text such as 2026-01-31T13:00:00Z{form}."
            )
        found_H[i] = instant
    return found_H


def _plain_instants(values: Sequence[Any]) -> np.ndarray | None:
    """Times that are all text of one plain form in UTC, µs since 1970, int64 [H]; None where one of them is not.

    The forms are `2026-01-31T13:00:00` and `2026-01-31T13:00:00.000000`, both also with `Z` or `+00:00`.
    """
    if set(map(type, values)) != {str}:
        return None
    zone = next((zone for zone in ("Z", "+00:00") if values[0].endswith(zone)), "")
    plain = [text.removesuffix(zone) for text in values]
    if "".join(plain).translate(ZEROS) not in (FORM * len(plain), (FORM + ".000000") * len(plain)):
        return None
    try:
        found_H = np.array(plain, "datetime64[us]").astype(np.int64)
    except ValueError:  # no such day or hour
        return None
    return found_H if found_H.min() >= FIRST_TIME else None  # four digits write no year above 9999


def _within(values: Sequence[int], factor: int) -> bool:
    return FIRST_TIME // factor <= min(values) and max(values) < LAST_TIME // factor


def _instant(value: Any, factor: int, formatted: Mapping[Any, int | None]) -> int | None:
    """One time, µs since 1970; None for what is none."""
    if isinstance(value, str):
        if formatted.get(value) is not None:
            return formatted[value]
        try:
            time = datetime.fromisoformat(value)
        except ValueError:
            return None
        return microseconds_of(time if time.tzinfo else time.replace(tzinfo=UTC))
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value * factor if isinstance(value, int) and not isinstance(value, bool) else None
