"""Events that a client reports as they happen: checked by the contract, with the label that the contract computes.

Shapes: E events.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np

from ctr.serving.answering.answers import latest_time, read_body
from features.calendar import first_instant, microseconds_of, text_of
from features.contract.columns import Gap, Residual
from features.contract.event_columns import event_columns
from features.encoding.past import Past, PastEvent, instants
from features.encoding.request import Limits, parse_request
from features.errors import ConfigError
from features.requests.past_columns import RequestEncoder
from features.requests.raw_columns import RawEvents

MOST_COLUMNS = 64  # of one event
EXAMPLE = 'e.g. {"events": [{"user": 7, "item": 3, "time": 1767225600, "clicked": 1}]}'


@dataclass(frozen=True)
class Events:
    """The sound events of one body, in its order.

    Args:
        users: raw ids.
        events: raw item ids, times and those columns that histories read.
        label_E: 0 or 1, NaN where unknown, float64 [E].
        is_event_E: which may stand in histories, bool [E].
        refused: how many others there were.
        reason: why the first of these was refused.
    """

    users: tuple[Any, ...]
    events: tuple[PastEvent, ...]
    label_E: np.ndarray
    is_event_E: np.ndarray
    refused: int = 0
    reason: str | None = None

    def by_user(self) -> dict[Any, list[PastEvent]]:
        """The events that may stand in histories."""
        found: dict[Any, list[PastEvent]] = {}
        for user, event, is_event in zip(self.users, self.events, self.is_event_E.tolist(), strict=True):
            if is_event:
                found.setdefault(user, []).append(event)
        return found


class EventReader:
    """Reads bodies of `POST /v1/events` by the contract of a bundle.

    Args:
        requests: the encoder of the bundle's requests.
        most: events of one body.
    """

    def __init__(self, requests: RequestEncoder, most: int) -> None:
        encoder = requests.encoder
        self._contract, self._users, self._items = encoder.contract, encoder.users, encoder.items
        self._requests = requests
        self._most = most
        self._reads = event_columns(encoder.contract)
        specs = encoder.contract.history.columns
        # Event columns that are a raw column as it is: they have the type that a request's have.
        self._plain = {
            name: spec.source or name
            for name, spec in specs.items()
            if not isinstance(spec, Gap | Residual) and (spec.source or name) in self._reads
        }
        self._limits = Limits(max_candidates=1, max_history=1)

    def read(self, body: bytes, now: datetime) -> Events:
        """The events of a body.

        Args:
            body: `{"events": [{"user", "item", "time", raw columns of the log…}, …]}`.
            now: by the server's clock, with its zone.

        Raises:
            ConfigError: the body is no such object, or has more events than are taken at once.
        """
        entries = self._entries(body)
        found: list[tuple[Any, PastEvent, float, bool]] = []
        reasons: list[str] = []
        sound: list[tuple[int, Any, PastEvent]] = []
        for i, entry in enumerate(entries):
            try:
                sound.append((i, *self._event(entry, now)))
            except ConfigError as error:
                reasons.append(f"events[{i}]: {error}")
        try:
            label_E, is_event_E = self._outcomes([user for _, user, _ in sound], [event for _, _, event in sound])
        except ConfigError:
            # One by one, to tell the sound ones from those that the contract's expressions cannot be computed of.
            for i, user, event in sound:
                try:
                    (label,), (is_event,) = self._outcomes([user], [event])
                except ConfigError as error:
                    reasons.append(f"events[{i}]: {error}")
                else:
                    found.append((user, event, float(label), bool(is_event)))
        else:
            rows = zip(sound, label_E.tolist(), is_event_E.tolist(), strict=True)
            found = [(user, event, label, is_event) for (_, user, event), label, is_event in rows]
        return Events(
            users=tuple(user for user, _, _, _ in found),
            events=tuple(event for _, event, _, _ in found),
            label_E=np.array([label for _, _, label, _ in found], np.float64),
            is_event_E=np.array([is_event for _, _, _, is_event in found], bool),
            refused=len(reasons),
            reason=min(reasons, key=_number, default=None),
        )

    def _entries(self, body: bytes) -> list[Any]:
        raw = read_body(body)
        entries = raw.get("events")
        if set(raw) != {"events"} or not isinstance(entries, list) or not entries:
            raise ConfigError(f"body: expected one key, `events`, with a list of events; {EXAMPLE}.")
        if len(entries) > self._most:
            raise ConfigError(f"events: {len(entries)} entries, at most {self._most} are taken at once. Send fewer.")
        if self._contract.interactions.time is None:
            raise ConfigError("events: this log has no times, so no events can be added to it.")
        return entries

    def _event(self, entry: Any, now: datetime) -> tuple[Any, PastEvent]:
        """User and event of one entry."""
        if not isinstance(entry, dict):
            raise ConfigError(f"expected an object, got {type(entry).__name__}; {EXAMPLE}.")
        for key in ("user", "item", "time"):
            if entry.get(key) is None:
                raise ConfigError(f"needs `{key}`; {EXAMPLE}.")
        if len(entry) > MOST_COLUMNS:
            raise ConfigError(f"{len(entry)} columns, at most {MOST_COLUMNS} are read. Send what the contract names.")
        columns = {name: entry[name] for name in entry if name in self._reads}
        for name, value in {"user": entry["user"], "item": entry["item"], **columns}.items():
            _refuse_unsound(name, value)
        plain = {name: columns[source] for name, source in self._plain.items() if source in columns}
        request = {"user": entry["user"], "history": [{"item": entry["item"], **plain}], "candidates": [entry["item"]]}
        try:
            parsed = parse_request(request, self._contract, self._limits)
        except ConfigError as error:
            raise ConfigError(str(error).removeprefix("history[0].").removeprefix("history[0]: ")) from None
        for name, ids, value in (("user", self._users, parsed.user), ("item", self._items, parsed.history[0])):
            if not ids.is_of_kind(value):
                raise ConfigError(f"{name}: {value!r} is {type(value).__name__}, ids of this log are {ids.kind}.")
        return parsed.user, PastEvent(parsed.history[0], self._time(entry["time"], now), columns)

    def _time(self, value: Any, now: datetime) -> int:
        """A time as the log has it, µs since 1970."""
        log, checks = self._contract.interactions, self._contract.checks
        time = int(instants("time", [value], self._contract)[0])
        latest = latest_time(self._contract, microseconds_of(now))
        if not first_instant(checks.earliest) <= time < latest:
            raise ConfigError(
                f"time: {value!r} is {text_of(time)}, which is not between {checks.earliest} and {text_of(latest)}. "
                f"Whole numbers count in {log.time_unit!r}."
            )
        return time

    def _outcomes(self, users: Sequence[Any], events: Sequence[PastEvent]) -> tuple[np.ndarray, np.ndarray]:
        """Labels float64 [E], NaN where unknown, and which events may stand in histories, bool [E]."""
        found = RawEvents(self._requests.columns, Past.of(events), users)
        try:
            self._requests.check(found)  # what is kept as a past is read at each later request of the user
            return found.label.astype(np.float64), found.is_event()
        except ConfigError as error:
            raise ConfigError(re.sub(r"^history\[\d+\][:.] ?", "", str(error)).removeprefix("history: ")) from None


def _refuse_unsound(name: str, value: Any) -> None:
    """Refuse what no column of a log holds: lists, objects, and whole numbers of more than 64 bits."""
    if isinstance(value, int) and not isinstance(value, bool):
        sound = -(2**63) <= value < 2**63
    else:
        sound = value is None or isinstance(value, bool | float | str)
    if not sound:
        raise ConfigError(f"{name}: {str(value)[:40]!r} is no value of a column: text, a number, true, false or null.")


def _number(reason: str) -> int:
    return int(reason[len("events[") : reason.index("]")])
