"""Keeping freed memory in the process, so that the large tensors of each step reuse it."""

from __future__ import annotations

import ctypes
import sys

# mallopt(3): never give memory back, and take none by mmap, which is given back on every free.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
# The same for a process that is started with this environment, whatever runs in it.
KEEPING = {"MALLOC_TRIM_THRESHOLD_": "-1", "MALLOC_MMAP_MAX_": "0"}


def keep_freed_memory() -> bool:
    """Make the whole process keep the memory it frees until it ends; returns whether the C library accepted it.

    Otherwise each large tensor of a step is mapped, cleared page by page and unmapped again, which on a CPU takes
    longer than most of the computation in it. The process stays at its peak, whatever else it does: call this where a
    process that trains begins, as the commands do, and not in a library. Only glibc has these settings; elsewhere
    nothing changes.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(M_TRIM_THRESHOLD, -1)) and bool(mallopt(M_MMAP_MAX, 0))
