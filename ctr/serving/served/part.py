"""A part of the served log while it is written: some answers at a time, under a name that no reader looks for."""

from __future__ import annotations

import secrets
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from features.store.atomic import flush
from features.store.served_schema import SERVED

LEFT_SECONDS = 3600.0  # a hidden file that nothing was written to for so long has no process


class OpenPart:
    """A part that takes rows; `finish` lets readers see it, `drop` leaves nothing of it.

    Args:
        folder: of the log; it is made where somebody removed it.

    Raises:
        OSError: the file cannot be made; nothing is left of it.
    """

    def __init__(self, folder: Path) -> None:
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        self.path = folder / f"served-{stamp}-{secrets.token_hex(4)}.parquet"
        self._partial = self.path.with_name(f".{self.path.name}")
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self._writer = pq.ParquetWriter(str(self._partial), SERVED)
        except Exception:
            with suppress(OSError):  # a full disk takes the file's name, and no byte of it
                self._partial.unlink()
            raise
        self.rows = 0

    def add(self, table: Any) -> None:
        """Write rows of `SERVED`, one group of the file. Raises OSError or pyarrow's errors: only `drop` may follow."""
        self._writer.write_table(table, row_group_size=len(table))
        self.rows += len(table)

    def finish(self) -> None:
        """Write the end, sync, rename. Raises OSError: only `drop` may follow."""
        self._writer.close()
        flush(self._partial)
        self._partial.rename(self.path)
        flush(self.path.parent)

    def drop(self) -> None:
        """Remove what was written."""
        with suppress(Exception):  # on a full disk the end of the file cannot be written either
            self._writer.close()
        with suppress(OSError):
            self._partial.unlink()


def remove_left(folder: Path) -> None:
    """Remove what killed processes had begun."""
    for partial in folder.glob(".served-*.parquet"):
        with suppress(OSError):
            if time.time() - partial.stat().st_mtime > LEFT_SECONDS:
                partial.unlink()
