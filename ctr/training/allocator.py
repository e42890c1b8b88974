"""Keeping memory that was freed: a step's large tensors are then reused, not asked of the system again."""

from __future__ import annotations

import ctypes
import sys

# mallopt(3): never give memory back, and take none by mmap, which is given back on every free.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, to its end; returns whether the C library was told.

    Each large tensor of a step is otherwise mapped, cleared page by page and unmapped again, which on a CPU takes
    longer than most of what is computed in it. Only glibc can be told; elsewhere nothing changes.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(M_TRIM_THRESHOLD, -1)) and bool(mallopt(M_MMAP_MAX, 0))
