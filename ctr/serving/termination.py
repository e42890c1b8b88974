"""What a process does when it is asked to end."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def on_termination(leave: Callable[[Callable[[], None]], None]) -> Iterator[None]:
    """Within the block, SIGTERM calls `leave` in the event loop, with what the signal would have done.

    Outside the main thread, where Python takes no signals, it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop, before = asyncio.get_running_loop(), signal.getsignal(signal.SIGTERM)

    def stop() -> None:
        if callable(before):
            before(signal.SIGTERM, None)
        else:
            signal.signal(signal.SIGTERM, before)
            signal.raise_signal(signal.SIGTERM)

    signal.signal(signal.SIGTERM, lambda *_: loop.call_soon_threadsafe(leave, stop))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
