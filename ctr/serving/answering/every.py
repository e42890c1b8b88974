"""A thread that does something again and again."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

log = logging.getLogger("quadrank.serve")


class Every:
    """Calls something every so many seconds, in a thread of its own, until it is closed.

    Args:
        name: of the thread.
        call: what it does; what it raises is logged, and it is called again.
    """

    def __init__(self, name: str, call: Callable[[], object]) -> None:
        self._name, self._call = name, call
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, seconds: float) -> None:
        """Begin, with a first call after so many seconds."""

        def look() -> None:
            while not self._stop.wait(seconds):
                try:
                    self._call()
                except Exception:
                    log.exception("%s: tried again in %g s", self._name, seconds)

        self._thread = threading.Thread(target=look, name=self._name, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End, after the call at hand."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
