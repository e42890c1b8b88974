"""A thread that does something again and again."""

from __future__ import annotations

import threading

from ctr.serving.answering.every import Every


def test_a_call_that_raises_is_logged_and_called_again(caplog):
    calls, third = list[int](), threading.Event()

    def call() -> None:
        calls.append(1)
        if len(calls) == 3:
            third.set()
        raise TypeError("no answer")

    every = Every("versions", call)
    every.start(0.001)
    assert third.wait(60)
    every.close()
    assert "versions: tried again" in caplog.text and "TypeError: no answer" in caplog.text
