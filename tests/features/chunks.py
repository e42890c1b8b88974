"""Chunks written by hand: what a test leaves out is that of logged rows, each an event of one user and item."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from features.chunk import Chunk


def chunk_of(time: Sequence[int] | np.ndarray, **columns: Any) -> Chunk:
    """A chunk of these times (µs)."""
    rows = len(time)
    given = {
        name: np.asarray(values, np.int32) if name in ("user", "item") else values for name, values in columns.items()
    }
    every: dict[str, Any] = {
        "user": np.full(rows, 2, np.int32),
        "item": np.full(rows, 2, np.int32),
        "time": np.asarray(time, np.int64),
        "instant": np.asarray(time, np.int64),
        "label": np.zeros(rows, np.float32),
        "is_event": np.ones(rows, bool),
        "is_row": np.ones(rows, bool),
        "is_logged": np.ones(rows, bool),
    }
    return Chunk(**every | given)
