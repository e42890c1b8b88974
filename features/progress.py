"""How long jobs say how far they are: a bar on a terminal, a line now and then in a log file."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import IO, Protocol, TextIO

SECONDS_BETWEEN_LINES = 15.0


def say(line: str, out: TextIO | None = None) -> None:
    """Write a line on stderr. Where nobody reads that any more, this line and all later ones go nowhere.

    Args:
        line: without its end.
        out: another stream.
    """
    stream = sys.stderr if out is None else out
    try:
        print(line, file=stream, flush=True)
    except BrokenPipeError:
        silence(stream)


def silence(stream: IO[str]) -> None:
    """Let what is written to a stream go nowhere: nobody reads it any more."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


class Bar:
    """How far a job is, and how fast it goes: `12,000 / 48,000 rows, 6,000 rows/s`. This one shows it to nobody."""

    def __init__(self, total: int, unit: str, done: int = 0) -> None:
        self.total = total
        self.unit = unit
        self.done = self._done_before = done
        self.note = ""
        self._started = time.monotonic()

    def advance(self, amount: int, note: str | None = None) -> None:
        """`amount` more units are done; `note`, when given, replaces the text shown beside the count."""
        self.done += amount
        if note is not None:
            self.note = note
        self.show()

    def advance_to(self, done: int, total: int) -> None:
        """`done` of `total` units are done. Fits callbacks of the form (done, total)."""
        self.total = total
        self.advance(done - self.done)

    def show(self) -> None:
        """Called after each change."""

    def __str__(self) -> str:
        speed = (self.done - self._done_before) / max(time.monotonic() - self._started, 1e-9)
        text = f"{self.done:,} / {self.total:,} {self.unit}, {speed:,.0f} {self.unit}/s"
        return f"{text}, {self.note}" if self.note else text


class Progress(Protocol):
    """Opens a bar for one job: `progress` shows it, `silent` does not."""

    def __call__(self, description: str, total: int, unit: str = "rows", done: int = 0) -> AbstractContextManager[Bar]:
        """Open a bar of `total` units, `done` of them by an earlier process, for a `with` statement."""


@contextmanager
def progress(description: str, total: int, unit: str = "rows", done: int = 0) -> Iterator[Bar]:
    """Show a job on stderr: a live bar on a terminal, otherwise a line every 15 seconds and one at the end.

    Args:
        description: what is being done, such as `training`.
        total: units of the whole job.
        unit: what is counted, in the plural.
        done: units that an interrupted job had done before; they do not count into the speed.

    Example:
        >>> with progress("encoding", total=3, unit="files") as bar:
        ...     bar.advance(1, note="items.parquet")
    """
    if sys.stderr.isatty():
        with _live_bar(description, total, unit, done) as bar:
            yield bar
    else:
        lines = Lines(description, total, unit, done, out=sys.stderr)
        yield lines
        lines.finish()


@contextmanager
def silent(description: str, total: int, unit: str = "rows", done: int = 0) -> Iterator[Bar]:
    """Show nothing."""
    yield Bar(total, unit, done)


class Lines(Bar):
    """Progress for log files: plain lines at least `seconds_between` apart, and a last one by `finish`."""

    def __init__(
        self,
        description: str,
        total: int,
        unit: str,
        done: int = 0,
        *,
        out: TextIO,
        seconds_between: float = SECONDS_BETWEEN_LINES,
    ) -> None:
        super().__init__(total, unit, done)
        self.description = description
        self.out = out
        self.seconds_between = seconds_between
        self._written = time.monotonic()

    def show(self) -> None:
        """Write a line if the last one is long ago."""
        if time.monotonic() - self._written >= self.seconds_between:
            self.finish()

    def finish(self) -> None:
        """Write a line now."""
        say(f"{self.description}: {self}", self.out)
        self._written = time.monotonic()


@contextmanager
def _live_bar(description: str, total: int, unit: str, done: int) -> Iterator[Bar]:
    # Imported here: servers and tests never draw a bar.
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    count = TextColumn("{task.fields[count]}")
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), count, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:

        class Live(Bar):
            def show(self) -> None:
                bars.update(task, completed=self.done, total=self.total)

        bar = Live(total, unit, done)
        task = bars.add_task(description, total=total, completed=done, count=bar)
        yield bar
