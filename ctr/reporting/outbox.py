"""A folder that keeps what an MLflow store could not be told, and sends it in order when the store answers again.

entries.jsonl    one entry a line, on disk before the caller goes on
files/           copies of the files among them
sent.json        how many entries were sent, and what the store answered to them
refused.jsonl    entries that the store answered with an error, and the error: they are not tried again
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter

from ctr.reporting.entries import Entry, File, Known, Params, Points, Tag, new_id
from ctr.reporting.mlflow_store import MlflowStore
from features.errors import StoreAwayError
from features.progress import say
from features.store.atomic import flush, write_text
from features.store.disk import disk_trouble

OUTBOX = "outbox"  # in a run's folder
ENTRIES, SENT, REFUSED, FILES = "entries.jsonl", "sent.json", "refused.jsonl", "files"
# Seconds until a store that was away is tried again: each time twice as long, up to the second.
FIRST_WAIT, LONGEST_WAIT = 15.0, 600.0

# What a run logs; without it the run is still worth something.
OF_A_RUN = (Points, Params, Tag, File)

_ENTRY: TypeAdapter[Entry] = TypeAdapter(Entry)


class _Sent(BaseModel):
    entries: int = 0
    known: Known = Known()


class Outbox:
    """What waits in one folder, which need not exist.

    Args:
        folder: e.g. `runs/RUN/outbox`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def waiting(self) -> list[Entry]:
        """Entries that are not sent yet, oldest first."""
        # The record is written after the lines it counts.
        sent = self._sent().entries
        return [_ENTRY.validate_python(json.loads(line)) for line in self._lines()[sent:]]

    def known(self) -> Known:
        """What the store has answered so far."""
        return self._sent().known

    def remember(self, known: Known) -> None:
        """Keep what the store answered to an entry that did not have to wait."""
        self.folder.mkdir(exist_ok=True)
        with self._lock():
            self._write(self._sent().entries, known)

    def refused(self) -> list[str]:
        """Why the store did not take entries, one text each."""
        file = self.folder / REFUSED
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        return [json.loads(line)["error"] for line in lines]

    def append(self, entry: Entry) -> None:
        """Keep an entry; a file among them is copied, since it may change before it is sent."""
        self.folder.mkdir(exist_ok=True)
        with self._lock():
            if isinstance(entry, File):
                copy = self.folder / FILES / new_id() / entry.path.name
                copy.parent.mkdir(parents=True)
                shutil.copyfile(entry.path, copy)
                flush(copy)
                entry = entry.model_copy(update={"path": copy.resolve()})
            self._add_line(ENTRIES, entry.model_dump(mode="json"))

    def send(self, store: MlflowStore) -> int:
        """Send what waits, in order; returns how many entries were sent.

        What the store refuses goes to `refused.jsonl`, so that it does not hold up what comes after it.

        Raises:
            StoreAwayError: the store does not answer; what was not sent waits on.
        """
        if not self.folder.is_dir():
            return 0
        with self._lock():
            done = 0
            for entry in self.waiting():
                sent = self._sent()
                try:
                    entry.deliver_late(store, sent.known)
                except StoreAwayError:
                    raise
                except Exception as error:
                    if disk_trouble(error):
                        raise
                    self._refuse(entry, error)
                else:
                    done += 1
                self._write(sent.entries + 1, sent.known)
            return done

    def refuse(self, entry: Entry, error: Exception) -> None:
        """Keep an entry that the store answered with an error, and that is not tried again."""
        self.folder.mkdir(exist_ok=True)
        with self._lock():
            self._refuse(entry, error)

    def _refuse(self, entry: Entry, error: Exception) -> None:
        self._add_line(REFUSED, {"entry": entry.model_dump(mode="json"), "error": f"{entry.kind}: {error}"})

    def _sent(self) -> _Sent:
        file = self.folder / SENT
        return _Sent.model_validate_json(file.read_bytes()) if file.is_file() else _Sent()

    def _write(self, entries: int, known: Known) -> None:
        write_text(self.folder / SENT, _Sent(entries=entries, known=known).model_dump_json())

    def _lines(self) -> list[bytes]:
        """Whole lines: a kill may have left half of the last one."""
        file = self.folder / ENTRIES
        lines = file.read_bytes().splitlines(keepends=True) if file.is_file() else []
        return [line for line in lines if line.endswith(b"\n")]

    def _add_line(self, name: str, content: dict[str, Any]) -> None:
        line = json.dumps(content).encode() + b"\n"
        with (self.folder / name).open("ab") as file:
            whole = file.tell()
            if name == ENTRIES:
                whole = sum(map(len, self._lines()))
                file.truncate(whole)
            try:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                os.truncate(self.folder / name, whole)
                raise
        flush(self.folder)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        with (self.folder / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


class Delivery:
    """Tells a store at once what it can be told at once; the rest goes by way of an outbox, and nothing overtakes it.

    Args:
        store: to be told.
        outbox: None where the caller rather fails than waits.
    """

    def __init__(self, store: MlflowStore, outbox: Outbox | None) -> None:
        self.store = store
        self.outbox = outbox
        self._wait = FIRST_WAIT
        self._next_try = 0.0

    def known(self) -> Known:
        """What the store has answered so far to entries that had to wait."""
        return Known() if self.outbox is None else self.outbox.known()

    @property
    def waits(self) -> bool:
        """Whether anything waits to be sent."""
        return self.outbox is not None and bool(self.outbox.waiting())

    def put(self, entry: Entry) -> Known:
        """Send an entry, or keep it; returns what the store has answered so far.

        Raises:
            StoreAwayError: the store does not answer, and there is no outbox.
            Exception: the store refuses to begin or resume a run, to register a bundle, or to move an alias. That it
                refuses what a run logs, e.g. since someone deleted that run, ends no training.
            DiskError: the outbox cannot be written.
        """
        if self.outbox is None:
            known = Known()
            entry.deliver(self.store, known)
            return known
        if self.waits and (time.monotonic() < self._next_try or not self.send()):
            self.outbox.append(entry)
            return self.outbox.known()
        known = self.outbox.known()
        before = known.model_copy(deep=True)
        try:
            entry.deliver(self.store, known)
        except StoreAwayError as away:
            self.outbox.append(entry)
            self._put_off(away)
            return before
        except Exception as error:
            if not isinstance(entry, OF_A_RUN) or disk_trouble(error):
                raise
            say(f"MLflow refuses a {entry.kind}, the run goes on: {error}")
            self.outbox.refuse(entry, error)
            return before
        if known != before:
            self.outbox.remember(known)
        return known

    def require_store(self) -> None:
        """Send what waits, and make sure that the store answers. Raises StoreAwayError where it does not."""
        if self.outbox is not None:
            self.outbox.send(self.store)
        with self.store.contact():
            pass

    def send(self) -> bool:
        """Try to send what waits; whether nothing waits any more."""
        if self.outbox is None or not self.waits:
            return True
        try:
            self.outbox.send(self.store)
        except StoreAwayError as away:
            self._put_off(away)
            return False
        self._wait = FIRST_WAIT
        return True

    def _put_off(self, away: StoreAwayError) -> None:
        assert self.outbox is not None
        if self._wait == FIRST_WAIT:
            reason = str(away).partition(" Start the server")[0]
            say(f"{reason} What is logged waits in {self.outbox.folder}")
        self._next_try = time.monotonic() + self._wait
        self._wait = min(2 * self._wait, LONGEST_WAIT)
