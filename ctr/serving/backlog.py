"""What waits for a thread of its own: so much and no more, and what does not fit is dropped."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Backlog(Generic[T]):
    """First in, first out, bounded by number and by bytes; whoever adds to it never waits.

    Args:
        most: that wait.
        mib: memory of those that wait.
        on_drop: called for each one that is dropped.
    """

    def __init__(self, most: int, mib: int, on_drop: Callable[[], None]) -> None:
        self._most, self._room, self._on_drop = most, mib * 2**20, on_drop
        self._waiting: deque[tuple[T, int]] = deque()
        self._added = threading.Condition()

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, one: T, size: int) -> None:
        """Add one of so many bytes, or drop it where it does not fit."""
        with self._added:
            fits = len(self._waiting) < self._most and size <= self._room
            if fits:
                self._waiting.append((one, size))
                self._room -= size
                self._added.notify()
        if not fits:
            self._on_drop()

    def get(self, seconds: float) -> T | None:
        """The one that waits longest, which waits no longer; None where nothing comes within so many seconds."""
        with self._added:
            if not self._waiting:
                self._added.wait(seconds)
            if not self._waiting:
                return None
            one, size = self._waiting.popleft()
            self._room += size
            return one

    def drop_all(self) -> None:
        """Drop what waits."""
        while self.get(0) is not None:
            self._on_drop()
