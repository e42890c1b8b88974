"""The log of what was served as it lies on disk: the columns of its parquet parts, one row an answer.

The server writes it, `quadrank features` learns from it, `quadrank replay` proves it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import pyarrow as pa

_TIME = pa.timestamp("us", tz="UTC")
# One input of the model: numbers of a numeric column, indices of any other one; the other list is null.
INPUT = pa.struct([("name", pa.string()), ("numbers", pa.list_(pa.float32())), ("indices", pa.list_(pa.int64()))])
SHADOW = "shadow"  # the variant of scores that no user saw
# Ids are text here, whichever kind the log has: one file format for all contracts.
SERVED = pa.schema(
    [
        ("request", pa.string()),
        ("time", _TIME),  # as encoding used it
        ("logged", _TIME),  # by the server's clock
        ("version", pa.string()),
        ("variant", pa.string()),  # champion, challenger or shadow
        ("user", pa.string()),
        ("user_hashed", pa.bool_()),
        ("user_columns", pa.string()),  # JSON, as the request gave them
        ("context", pa.string()),  # likewise
        ("history_items", pa.list_(pa.string())),  # those that were used, oldest first
        ("history_newest", _TIME),
        ("history_hash", pa.string()),
        ("candidates", pa.list_(pa.string())),
        ("inputs", pa.list_(INPUT)),  # all that the model could read, counters of users and candidates included
        ("scores", pa.list_(pa.float32())),
        ("positions", pa.list_(pa.int32())),  # from 0; null for what `top_k` left out
    ]
)


def history_hash(inputs: Mapping[str, np.ndarray]) -> str:
    """16 hexadecimal digits of the sha256 of an encoded history: the inputs called `history_…`, by name."""
    digest = hashlib.sha256()
    for name in sorted(name for name in inputs if name.startswith("history_")):
        values = np.ascontiguousarray(inputs[name])
        digest.update(f"{name} {values.dtype.str} {values.shape} ".encode() + values.tobytes())
    return digest.hexdigest()[:16]
