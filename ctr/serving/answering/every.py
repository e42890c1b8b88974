"""A thread that does something again and again."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Every:
    """Calls something every so many seconds, in a thread of its own, until it is closed.

    Args:
        name: of the thread.
        call: what it does; it must not raise.
    """

    def __init__(self, name: str, call: Callable[[], object]) -> None:
        self._name, self._call = name, call
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, seconds: float) -> None:
        """Begin, with a first call after so many seconds."""

        def look() -> None:
            while not self._stop.wait(seconds):
                self._call()

        self._thread = threading.Thread(target=look, name=self._name, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End, after the call at hand."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
