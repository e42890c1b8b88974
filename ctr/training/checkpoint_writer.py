"""Checkpoints beside the training: when one is due, and the thread that writes it."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from ctr.config import CheckpointConfig
from ctr.training.checkpoint import CheckpointStore, Snapshot


class Schedule:
    """Says after which steps between evaluations a run is saved.

    Args:
        config: steps and minutes between two checkpoints.
        step: that the run stands at.
        clock: seconds that only grow.
    """

    def __init__(self, config: CheckpointConfig, step: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.config = config
        self._clock = clock
        self.saved(step)

    def saved(self, step: int) -> None:
        """The run was saved at this step."""
        self._step, self._moment = step, self._clock()

    def due(self, step: int) -> bool:
        """Whether the run should be saved at this step."""
        steps, seconds = self.config.steps, 60 * self.config.minutes
        return bool(steps and step - self._step >= steps) or bool(seconds and self._clock() - self._moment >= seconds)


class CheckpointWriter:
    """Writes snapshots in a thread, never two at a time. At the end of its `with` block all are written.

    Args:
        store: where they are written.
    """

    def __init__(self, store: CheckpointStore) -> None:
        self._store = store
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._last: Future[None] | None = None

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._thread.shutdown()
        if error is None:  # else what ended the block is the news
            self.wait()

    @property
    def busy(self) -> bool:
        """Whether a snapshot is still being written."""
        return self._last is not None and not self._last.done()

    def write(self, snapshot: Snapshot) -> None:
        """Write a snapshot once the one before it is written. Raises what that one could not be written for."""
        self.wait()
        self._last = self._thread.submit(self._store.write, snapshot)

    def wait(self) -> None:
        """Return when everything is written. Raises OSError where the last snapshot could not be written."""
        last, self._last = self._last, None
        if last is not None:
            last.result()
