"""Disks that cannot be written to: how an error says so, how much is free, and a look at it before work starts."""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
from pathlib import Path

from features.errors import DiskError

REASONS = {
    errno.ENOSPC: "no space is left on the disk",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EFBIG: "the file is larger than this process may write",
}
# How libraries that lose the number say it: Rust's `os error 28`, safetensors' `code: 28`, Arrow's `errno 28`, SQLite.
NUMBERED = re.compile(r"\b(?:os error |code: |errno )(\d+)\b", re.IGNORECASE)
MAKE_ROOM = "Make room (`quadrank gc` lists what nothing uses)"
ADVICE = {
    REASONS[errno.EROFS]: "Mount it to be written to, or let the command write elsewhere",
    REASONS[errno.EFBIG]: "Raise that limit (`ulimit -f`)",
}
SQLITE_FULL = "database or disk is full"
# numpy, of a file that took a part of an array: it says nothing of why.
CUT_SHORT = re.compile(r"\b\d+ requested and \d+ written\b")


def disk_trouble(error: BaseException) -> tuple[str, Path | None] | None:
    """Why the disk could not be written to, and the file if the error names it; None for any other error.

    Args:
        error: itself, or what it was raised from or while handling.
    """
    seen: BaseException | None = error
    while seen is not None:
        number = seen.errno if isinstance(seen, OSError) else None
        if number not in REASONS and (found := NUMBERED.search(str(seen))):
            number = int(found[1])
        if SQLITE_FULL in str(seen) or (number is None and isinstance(seen, OSError) and CUT_SHORT.search(str(seen))):
            number = errno.ENOSPC
        if number in REASONS:
            name = getattr(seen, "filename", None)
            return REASONS[number], Path(name) if isinstance(name, str | Path) else None
        seen = seen.__cause__ or seen.__context__
    return None


def free_bytes(path: Path) -> int:
    """Bytes that can still be written where a path lies or would lie."""
    there = path.absolute()
    while not there.exists():
        there = there.parent
    return shutil.disk_usage(there).free


def folder_bytes(folder: Path) -> int:
    """Bytes of the files below a folder that no other folder shares by a second name; 0 where there is no folder."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                found = Path(parent, name).lstat()
            except FileNotFoundError:
                continue  # another process removed it meanwhile
            if stat.S_ISREG(found.st_mode) and found.st_nlink == 1:
                total += found.st_size
    return total


def disk_error(reason: str, path: Path) -> DiskError:
    """The error of a command whose disk cannot be written to.

    Args:
        reason: e.g. "no space is left on the disk".
        path: what was written.
    """
    return DiskError(
        f"{path}: {reason}; {free_bytes(path):,} bytes are free there. Nothing was left half-written. "
        f"{ADVICE.get(reason, MAKE_ROOM)}, and start the same command again."
    )


def require_space(path: Path, needed: int, what: str) -> None:
    """Refuse to begin what the disk has no room for.

    Args:
        path: folder that will be written to.
        needed: bytes.
        what: that takes them, for the message.

    Raises:
        DiskError: fewer are free.
    """
    free = free_bytes(path)
    if free < needed:
        raise DiskError(
            f"{path}: {what} takes about {needed:,} bytes, and {free:,} bytes are free there. {MAKE_ROOM}, and start "
            "the same command again."
        )
