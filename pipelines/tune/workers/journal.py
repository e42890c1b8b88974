"""The journal file of a study: a full disk, or a kill, leaves no half line in it that a next one is written behind."""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

from features.errors import DataError

OPERATION = "op_code"  # key that each entry of Optuna's has, and begins with
BEGINS = f'{{"{OPERATION}":'.encode()


class Journal(JournalFileBackend):
    """Optuna's journal file, in which each line is whole.

    Args:
        path: of the file, which is made where it is new.

    Raises:
        DataError: the file is there and is no journal, and stays as it is; or, when it is read, of a line that is no
            JSON.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._turns = path, JournalFileSymlinkLock(str(path))
        super().__init__(str(path), self._turns)
        with self._turn():
            self._cut_half_line()

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        """Entries from this number on."""
        try:
            yield from super().read_logs(log_number_from)
        except ValueError as error:
            raise DataError(
                f"{self._path}: line {self._first_damaged_line()} is no entry of a study ({error}): the file was "
                "changed, or an earlier version wrote behind half a line. End the study's workers, take this line out "
                "of the file, and start the command again: all other lines are kept."
            ) from None

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write entries behind the last whole line; what could be written of a line in part is cut off again."""
        lines = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        with self._turn():
            self._cut_half_line()  # of a process that was killed
            try:
                with self._path.open("ab") as file:
                    file.write(lines.encode())
                    file.flush()
                    os.fsync(file.fileno())
            except OSError:
                with suppress(OSError):
                    self._cut_half_line()
                raise

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Hold the lock that workers write under."""
        self._turns.acquire()
        try:
            yield
        finally:
            self._turns.release()

    def _cut_half_line(self) -> None:
        with self._path.open("rb+") as file:
            if not _is_journal(file):
                raise DataError(
                    f"{self._path}: no journal of a study, and left as it is. Name another file with --storage; a "
                    f"database of SQLite is named --storage sqlite:///{self._path}"
                )
            length = file.seek(0, os.SEEK_END)
            file.seek(max(0, length - 1))
            if file.read() in (b"", b"\n"):
                return
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)

    def _first_damaged_line(self) -> int:
        """Its number, from 1."""
        lines = self._path.read_bytes().splitlines()
        return next((number for number, line in enumerate(lines, start=1) if not _is_entry(line)), len(lines))


def _is_journal(file: IO[bytes]) -> bool:
    """Whether a file is empty, or its first line is an entry, or half a line that begins as an entry does."""
    first = file.readline()
    if BEGINS.startswith(first[: len(BEGINS)]):
        return True
    try:
        entry = json.loads(first)
    except ValueError:
        return False
    return isinstance(entry, dict) and OPERATION in entry


def _is_entry(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
