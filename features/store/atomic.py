"""Writing so that a reader, or a crash, finds the old content or the new, never half of it."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from features.store.disk import disk_error, disk_trouble


def replace_file(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a sibling, flush it to disk, and rename it over `path`.

    Raises:
        DiskError: the disk is full, read-only or over its quota; `path` is as it was.
    """
    fresh = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(fresh)
        flush(fresh)
        fresh.replace(path)
    except Exception as error:
        if trouble := disk_trouble(error):
            raise disk_error(trouble[0], path) from error
        raise
    finally:
        fresh.unlink(missing_ok=True)
    flush(path.parent)


def write_text(path: Path, text: str) -> None:
    """Replace a text file."""
    replace_file(path, lambda fresh: fresh.write_text(text, encoding="utf-8"))


def flush(path: Path) -> None:
    """fsync a file, or a folder's list of names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_tree(folder: Path) -> None:
    """fsync everything below a folder, and the folder, before its rename.

    A file of two names was flushed when it got its first.
    """
    for path in sorted(folder.rglob("*")):
        if path.is_dir() or path.stat().st_nlink == 1:
            flush(path)
    flush(folder)
