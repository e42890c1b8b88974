"""Who answers a request: the champion, the challenger for its users, or popularity where no model can in time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from ctr.serving.answering.answers import Answer, Asked, rank, read_request
from ctr.serving.answering.assignment import CHALLENGER
from ctr.serving.answering.challenger import Challenger
from ctr.serving.answering.events import Events
from ctr.serving.answering.metrics import ServerMetrics
from ctr.serving.answering.pool import OverloadedError, RankingPool
from ctr.serving.answering.popularity import PopularityAnswer, popularity_answer
from ctr.serving.answering.shadow import Shadow
from ctr.serving.ranker import Ranker
from ctr.serving.settings import ServeConfig
from features.errors import ConfigError, NumericalError

log = logging.getLogger("quadrank.serve")


class Ranking:
    """Ranks bodies in the pool's threads.

    Args:
        config: of the server.
        load: opens and verifies the challenger's bundle.
        metrics: of the server.
        on_scored: called with what the shadow scored.
    """

    def __init__(
        self,
        config: ServeConfig,
        load: Callable[[Path], Ranker],
        metrics: ServerMetrics,
        on_scored: Callable[[Answer], None],
    ) -> None:
        self._config, self._metrics = config, metrics
        self._deadline = config.queue.deadline_ms / 1e3
        self.pool = RankingPool(config.concurrency, config.queue.size, self._deadline)
        # Popularity has a thread and a queue of its own: it answers when those of the model are taken.
        self._popular = RankingPool(1, config.queue.size, self._deadline)
        self.challenger: Challenger | None = None
        self._shadow: Shadow | None = None
        settings = config.challenger
        if settings.bundle is None:
            return
        challenger = self.challenger = Challenger(config, load, self._swapped, self._refused, self._untold)
        if settings.mode == "shadow":
            self._shadow = Shadow(
                lambda: challenger.current,
                lambda: self.pool.taken > 0,
                config.limits,
                settings.waiting,
                settings.waiting_mib,
                on_scored,
                on_drop=metrics.shadow_dropped.inc,
                on_failure=metrics.challenger_failed.inc,
            )

    def start(self, with_events: bool) -> None:
        """Begin to follow the challenger's pointer, and to score in the shadow."""
        if self.challenger is not None:
            self.challenger.watch(self._config.poll_seconds, with_events)
        if self._shadow is not None:
            self._shadow.start()

    def close(self) -> None:
        """Refuse new requests, wait for those that were taken, and end."""
        for pool in (self.pool, self._popular):
            pool.close()
        if self._shadow is not None:
            self._shadow.close()
        if self.challenger is not None:
            self.challenger.close()

    async def rank(self, champion: Ranker, body: bytes) -> Answer | PopularityAnswer:
        """Rank what a body asks for.

        With `fallback`, popularity answers `queue.deadline_ms` after the request came, or as soon as the model cannot.

        Raises:
            ConfigError: the body is no legal request.
            OverloadedError: no place or no time for it; with `fallback`, for popularity neither.
            NumericalError: without `fallback`, the model gave a score that is no number.
        """
        ranked = self.pool.run(lambda: self._rank(champion, body))
        if not self._config.fallback:
            return await ranked
        try:
            return await asyncio.wait_for(ranked, self._deadline)
        except ConfigError:
            raise
        except Exception as error:
            reason = _reason(error)
            if reason == "stopping":
                raise
        answered = await self._popular.run(lambda: popularity_answer(champion, body, self._config.limits))
        self._metrics.fallbacks.labels(reason).inc()
        return answered

    def shadow(self, answered: Answer) -> None:
        """Let the challenger score a request that was answered, if it is one of its share."""
        meets = self.challenger is not None and self.challenger.meets(answered.raw.get("user"), answered.request_id)
        if self._shadow is not None and meets:
            self._shadow.add(answered)

    def note(self, answered: Answer) -> None:
        """Count what a variant ranked."""
        metrics, variant = self._metrics, answered.variant
        metrics.variant_requests.labels(variant).inc()
        metrics.variant_candidates.labels(variant).inc(len(answered.scores))
        metrics.variant_score_sum.labels(variant).inc(float(answered.scores.sum()))
        if self.challenger is not None:
            self.challenger.remember(answered.raw)

    def take(self, events: Events) -> None:
        """Let the challenger's counters take events too."""
        if self.challenger is not None:
            self.challenger.add(events)

    def _rank(self, champion: Ranker, body: bytes) -> Answer:
        limits, strict = self._config.limits, self._config.strict
        asked = read_request(body)
        challenger = self._challenger_of(asked)
        if challenger is None:
            return rank(champion, asked, limits, strict)
        try:
            return rank(challenger, asked, limits, strict, CHALLENGER)
        except Exception as error:
            # A request that is no legal one ends here, as the champion says.
            answered = rank(champion, asked, limits, strict)
            log.warning("the challenger could not rank a request, the champion did: %s", error)
            self._metrics.challenger_failed.inc()
            return answered

    def _challenger_of(self, asked: Asked) -> Ranker | None:
        """The challenger if it answers this request."""
        if self.challenger is None or self._shadow is not None:
            return None
        return self.challenger.current if self.challenger.meets(asked.raw.get("user"), asked.request_id) else None

    def _swapped(self, ranker: Ranker, seconds: float) -> None:
        self._metrics.challenger_loaded.set(1)
        log.info("challenger %s begins, loaded in %.1f s", ranker.model_version, seconds)

    def _refused(self, path: Path, reason: str) -> None:
        self._metrics.challenger_refused.inc()
        log.error("challenger %s is refused: %s", path, reason)

    def _untold(self, reason: str) -> None:
        self._metrics.pointer_errors.labels(CHALLENGER).inc()
        log.warning("no challenger is named, the one before stays if there is one: %s", reason)


def _reason(error: Exception) -> str:
    """Why the model does not answer."""
    match error:
        case OverloadedError():
            return error.reason
        case TimeoutError():
            return "late"
        case NumericalError():
            log.error("%s", error)
            return "no_score"
        case _:
            log.error("unexpected error, popularity answers", exc_info=error)
            return "error"
