"""What waits for the shadow: so many requests, and so many bytes of them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ctr.serving.answering import shadow
from ctr.serving.answering.answers import Asked
from ctr.serving.answering.shadow import Shadow
from features.encoding.request import Limits

THIRD = 2**20 // 3 - 100


class Waits:
    """A shadow whose rankings run until it is told that they have ended, and what it did."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **bounds: int) -> None:
        self.asked: list[Asked] = []
        self.dropped = 0
        self.busy = True
        self.scored = threading.Semaphore(0)

        def rank(ranker: Any, asked: Asked, *_: Any, **__: Any) -> None:
            self.asked.append(asked)

        monkeypatch.setattr(shadow, "rank", rank)
        self.shadow = Shadow(
            challenger=lambda: SimpleNamespace(),  # type: ignore[arg-type,return-value]
            busy=lambda: self.busy,
            limits=Limits(),
            on_scored=lambda _: self.scored.release(),
            on_drop=self._drop,
            on_failure=self._drop,
            **{"waiting": 100, "waiting_mib": 1, **bounds},
        )

    def _drop(self) -> None:
        self.dropped += 1

    def add(self, length: int = 100, **request: Any) -> None:
        """One request of so many bytes, whose best three were answered."""
        body = json.dumps({"candidates": [1], **request}).encode()
        answered: Any = SimpleNamespace(
            request_id="r", asked=body.ljust(length), order=np.arange(3), request=SimpleNamespace(time=7)
        )
        self.shadow.add(answered)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[Waits]:
    made = Waits(monkeypatch)
    yield made
    if made.shadow._thread.is_alive():
        made.shadow.close()


def test_what_waits_is_bounded_by_bytes(waits):
    for _ in range(4):
        waits.add(THIRD)
    assert waits.dropped == 1
    waits.add(100)
    assert waits.dropped == 1, "a small one fits"


def test_what_was_scored_makes_room(waits):
    for _ in range(3):
        waits.add(THIRD)
    waits.busy = False
    waits.shadow.start()
    for _ in range(3):
        assert waits.scored.acquire(timeout=30)
    waits.busy = True
    waits.add(3 * THIRD)
    assert waits.dropped == 0


def test_what_a_full_queue_turned_away_takes_no_room(monkeypatch):
    waits = Waits(monkeypatch, waiting=1)
    for _ in range(3):
        waits.add(THIRD)
    assert waits.dropped == 2
    waits.shadow._backlog.get(0)
    waits.add(3 * THIRD)
    assert waits.dropped == 2


def test_it_keeps_bytes_and_reads_them_as_they_were_answered(waits):
    waits.add(id="another", top_k=9, user="u")
    waits.busy = False
    waits.shadow.start()
    assert waits.scored.acquire(timeout=30)
    (asked,) = waits.asked
    assert (asked.request_id, asked.top_k, asked.raw) == ("r", 3, {"candidates": [1], "user": "u"})
