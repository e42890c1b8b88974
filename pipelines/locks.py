"""Locks that keep two jobs apart: a file that says who holds it, and since when."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from features.errors import LockError
from features.progress import say

SECONDS_BETWEEN_TRIES = 0.2
SECONDS_OF_A_LOOK = 1.0
SECONDS_BETWEEN_SIGNS = 30.0
SILENT_AFTER = 300.0  # seconds without a sign after which a holder on another host counts as dead


@dataclass(frozen=True)
class Holder:
    """Who holds a lock.

    Args:
        host: its machine.
        pid: of its process there.
        since: UTC, ISO 8601.
    """

    host: str
    pid: int
    since: str

    @classmethod
    def here(cls) -> Holder:
        """This process, from now on."""
        return cls(socket.gethostname(), os.getpid(), datetime.now(UTC).isoformat(timespec="seconds"))

    @classmethod
    def of(cls, path: Path) -> Holder | None:
        """Who a lock file names; None where it names nobody, as one does that was given back."""
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            return cls(str(found["host"]), int(found["pid"]), str(found["since"]))
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def __str__(self) -> str:
        age = datetime.now(UTC) - datetime.fromisoformat(self.since)
        return f"pid {self.pid} on {self.host}, for {duration(age.total_seconds())} (since {self.since})"


def duration(seconds: float) -> str:
    """Seconds for people: `42 s`, `7 min`, `3 h 12 min`, `2 d 4 h`."""
    minutes, hours, days = int(seconds // 60), int(seconds // 3600), int(seconds // 86400)
    if minutes < 1:
        return f"{max(int(seconds), 0)} s"
    if hours < 1:
        return f"{minutes} min"
    return f"{hours} h {minutes % 60} min" if days < 1 else f"{days} d {hours % 24} h"


@contextmanager
def locked(path: Path, why_not: str, wait: float = 0.0) -> Iterator[None]:
    """Hold a lock file within the block.

    The lock of the operating system decides where it is seen: on one machine always, and it ends with its process
    whatever kills it. Some shared file systems do not show it to other machines. A holder therefore touches the file
    twice a minute, and a file that names another machine is respected until it has been silent for five minutes.

    Args:
        path: made where it is not there.
        why_not: first words of the error, e.g. `another process is training this run`.
        wait: seconds to wait for its holder.

    Raises:
        LockError: another process holds it, still after `wait` (exit 7).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with path.open("a+", encoding="utf-8") as file:
        while (reason := _taken(file, path)) is not None:
            # Who looks whether it is held (`quadrank doctor`, `gc`) holds it for an instant, without a name.
            patience = wait if Holder.of(path) else max(wait, SECONDS_OF_A_LOOK)
            if time.monotonic() - began >= patience:
                raise LockError(f"{path}: {why_not}: {reason}")
            time.sleep(SECONDS_BETWEEN_TRIES)
        left = Holder.of(path)
        if left is not None:
            say(f"{path}: taken over from {left}, which ended without giving it back")
        _write(file, json.dumps(asdict(Holder.here())))
        ended = threading.Event()
        signs = threading.Thread(target=_give_signs, args=(path, ended), daemon=True, name="lock")
        signs.start()
        try:
            yield
        finally:
            ended.set()
            signs.join()
            _write(file, "")


def _taken(file: IO[str], path: Path) -> str | None:
    """Take the lock; who holds it instead and the way out, where that is not possible."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = Holder.of(path)
        return f"{holder or 'who is not known yet'}. Wait for it to end."
    holder = Holder.of(path)
    if holder is None or holder.host == socket.gethostname():
        return None
    left = SILENT_AFTER - _silent_for(path)
    if left <= 0:
        return None
    fcntl.flock(file, fcntl.LOCK_UN)
    return (
        f"{holder}. That is another machine: the lock is taken over if it gives no sign for another {duration(left)}. "
        f"If it is gone, remove {path}."
    )


def _silent_for(path: Path) -> float:
    """Seconds since the file was touched, by the clock of its file system, which may be another machine's."""
    probe = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    probe.touch()
    try:
        return probe.stat().st_mtime - path.stat().st_mtime
    finally:
        probe.unlink()


def _give_signs(path: Path, ended: threading.Event) -> None:
    while not ended.wait(SECONDS_BETWEEN_SIGNS):
        try:
            path.touch()
        except OSError:
            continue  # a full or absent file system must not end the job's lock; the next sign may come through


def _write(file: IO[str], text: str) -> None:
    file.seek(0)
    file.truncate()
    file.write(text)
    file.flush()
