"""Ending when a signal asks for it: at once, or where the work in hand can be saved first."""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from features.errors import TryAgainError

TRY_AGAIN = TryAgainError.exit_code
SECONDS_TO_SAVE = 9.0  # a scheduler sends SIGKILL after 10 or more


class Stopped(BaseException):
    """SIGTERM asked this process to end. Whoever starts the same work again goes on with it."""


class StopRequest:
    """Whether a signal came while `held()` held it back."""

    def __init__(self) -> None:
        self.signal: int | None = None

    @property
    def requested(self) -> bool:
        """True from the signal on: save what is in hand, then call `obey`."""
        return self.signal is not None

    def obey(self) -> None:
        """End now, if a signal asked for it. Raises Stopped for SIGTERM, KeyboardInterrupt for Ctrl-C."""
        if self.signal is not None:
            _stop(self.signal)


_HELD: list[StopRequest] = []


@contextmanager
def held() -> Iterator[StopRequest]:
    """Hold the first signal back within the block, which looks at what is yielded; a second one ends it at once.

    A signal that the block did not obey is obeyed at its end.

    Example:
        >>> with held() as stop:
        ...     for step in range(3):
        ...         if stop.requested:
        ...             stop.obey()
    """
    request = StopRequest()
    _HELD.append(request)
    try:
        yield request
    finally:
        _HELD.remove(request)
    request.obey()


@contextmanager
def listening(too_late: Callable[[], object], seconds: float = SECONDS_TO_SAVE) -> Iterator[None]:
    """Within the block, SIGTERM and Ctrl-C raise Stopped and KeyboardInterrupt, or wait where `held()` holds them.

    Python runs a signal's handler between two instructions of its main thread, so a long call of another language
    delays it. What is not over `seconds` after SIGTERM is therefore ended by a thread of its own.

    Args:
        too_late: called by that thread, in what may be the middle of anything, before the process ends with code 75.
        seconds: from SIGTERM to that.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may change handlers
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = {number: signal.signal(number, _on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
    woken = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    watcher = threading.Thread(target=_watch, args=(reader, too_late, seconds), daemon=True, name="deadline")
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(woken)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(writer)  # which ends the watcher
        watcher.join()
        os.close(reader)


def _on_signal(number: int, frame: FrameType | None) -> None:
    if _HELD and not _HELD[-1].requested:
        _HELD[-1].signal = number
    else:
        _stop(number)


def _stop(number: int) -> None:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise Stopped


def _watch(reader: int, too_late: Callable[[], object], seconds: float) -> None:
    """Read the numbers of signals as they come; after SIGTERM wait for the end of the block, but not for ever."""
    while numbers := os.read(reader, 64):
        if signal.SIGTERM in numbers:
            break
    else:
        return
    until = time.monotonic() + seconds
    while select.select([reader], [], [], max(until - time.monotonic(), 0))[0]:
        if not os.read(reader, 64):
            return
    try:
        too_late()
    finally:
        os._exit(TRY_AGAIN)
