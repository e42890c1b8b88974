"""The challenger: a second version that follows a pointer of its own, and whose faults leave the champion alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ctr.serving.answering.assignment import meets_challenger
from ctr.serving.answering.events import Events
from ctr.serving.answering.every import Every
from ctr.serving.answering.live import LiveCounters
from ctr.serving.answering.versions import Files, PointerSource, Versions, files_of
from ctr.serving.ranker import Ranker
from ctr.serving.settings import ServeConfig
from features.errors import QuadRankError


class Challenger:
    """The challenger's version, its replacement and its counters.

    It is checked as every version is. A bundle that fails is refused and reported, and there is no challenger, or the
    one before stays, until the pointer names another one or its files have changed. Its counters take the same events
    as the champion's.

    Args:
        config: of the server; `challenger.bundle` is set.
        load: opens and verifies a bundle.
        on_swap: called with each version that begins, and the seconds it took.
        on_refusal: called with the path of a version that failed and the reason.
        on_untold: called with the reason where the pointer names no bundle.
    """

    def __init__(
        self,
        config: ServeConfig,
        load: Callable[[Path], Ranker],
        on_swap: Callable[[Ranker, float], None] = lambda ranker, seconds: None,
        on_refusal: Callable[[Path, str], None] = lambda path, reason: None,
        on_untold: Callable[[str], None] = lambda reason: None,
    ) -> None:
        assert config.challenger.bundle is not None
        self._settings, self._warm_up = config.challenger, config.warm_up
        self._source = PointerSource(config.challenger.bundle)
        self._load, self._on_swap, self._on_refusal, self._on_untold = load, on_swap, on_refusal, on_untold
        self._live = LiveCounters(config.events.seconds, config.events.remembered)
        self._versions: Versions | None = None
        self._refused: tuple[Path, Files] | None = None
        self._looking = Every("challenger", self.refresh)
        self.refresh()

    @property
    def current(self) -> Ranker | None:
        """The version, if there is a sound one."""
        return None if self._versions is None else self._versions.current

    def meets(self, user: Any, request_id: str) -> bool:
        """Whether a request is one of its share."""
        return meets_challenger(user, request_id, self._settings.share, self._settings.salt)

    def remember(self, request: dict[str, Any]) -> None:
        """Keep a request that it ranked for the warm-up of the next version."""
        if self._versions is not None:
            self._versions.remember(request)

    def add(self, events: Events) -> None:
        """Take events into its counters."""
        self._live.add(events)

    def refresh(self) -> None:
        """Begin with the wanted version, or replace it if another one is wanted."""
        if self._versions is not None:
            self._versions.refresh()
            return
        try:
            wanted = self._source.wanted()
        except Exception as error:
            self._on_untold(str(error))
            return
        found = wanted, files_of(wanted)
        if found == self._refused:
            return
        try:
            self._versions = Versions(
                self._source, self._load, self._warm_up, self._begun, self._on_refusal, self._on_untold
            )
        except Exception as error:
            # As for the champion: a wrong bundle stays wrong, what the machine lacked may be there at the next look.
            self._refused = found if isinstance(error, QuadRankError) else None
            self._on_refusal(wanted, str(error))

    def watch(self, seconds: float, with_events: bool) -> None:
        """Begin to look for another version every so many seconds, and for events if the server takes them."""
        self._looking.start(seconds)
        if with_events:
            self._live.start()

    def close(self) -> None:
        """End the watching."""
        self._looking.close()
        self._live.close()

    def _begun(self, ranker: Ranker, seconds: float) -> None:
        self._live.follow(ranker)
        self._on_swap(ranker, seconds)
