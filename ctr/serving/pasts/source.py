"""What every source of pasts can do, how many events it keeps of a user, and the source that has none."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from features.contract.log import History
from features.encoding.past import PastEvent

MORE_FOR_FILTERS = 4
# What came of asking for a past: found, absent (no such user), foreign (of another contract or format), broken (bytes
# that are no past), failed (the store did not answer).
Note = Callable[[str], None]


class Pasts(Protocol):
    """A source of users' pasts. Its methods may be called by several threads at once."""

    def newest(self, user: Any) -> list[PastEvent]:
        """The newest events of a user (raw id), oldest first; empty where none are known or the source is away."""

    def add(self, user: Any, events: Iterable[PastEvent]) -> None:
        """Keep events of a user too, in any order; one of the same item and time as a kept one replaces it.

        Raises:
            AwayError: the source cannot take them now.
        """


class AwayError(Exception):
    """A source of pasts that cannot keep events now."""


class RequestPasts:
    """The past that a request brings is all that is known: nothing is kept."""

    def newest(self, user: Any) -> list[PastEvent]:
        """None."""
        return []

    def add(self, user: Any, events: Iterable[PastEvent]) -> None:
        """They are not kept."""


def kept_events(history: History) -> int:
    """How many events of a user a source keeps: one more than the longest history, for the pause before its first.

    Four times as many where a history leaves out some of the newest events: repeats, or those within `delay`. Events
    that `history.events` leaves out are not kept at all; `within` and `session_gap` leave out old ones.
    """
    leaves_out = history.repeats != "keep" or history.delay is not None
    return history.max_len * (MORE_FOR_FILTERS if leaves_out else 1) + 1


def merged(stored: Iterable[PastEvent], added: Iterable[PastEvent], keep: int) -> list[PastEvent]:
    """The newest `keep` of both, oldest first. Of events of the same item and time the one that came last stays."""
    by_event = {(event.time, event.item): event for event in (*stored, *added)}
    return sorted(by_event.values(), key=lambda event: event.time)[-keep:]
