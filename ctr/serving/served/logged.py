"""The served log read back, an answer at a time.

Shapes: H history items, N candidates.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.errors import ConfigError, DataError
from features.store.served_schema import SERVED

BATCH = 500  # answers that become Python objects at once


@dataclass(frozen=True)
class LoggedAnswer:
    """One answer.

    Args:
        request, version: their ids.
        time: as encoding used it, µs since 1970.
        user: id as text, its hash, or None.
        user_hashed: whether it is a hash.
        user_columns, context: as the request gave them.
        history: ids as text, oldest first.
        history_hash: of the encoded history.
        candidates: ids as text.
        inputs: of the model, by name, float32 or int64, flat.
        scores: float32 [N].
    """

    request: str
    version: str
    time: int
    user: str | None
    user_hashed: bool
    user_columns: dict[str, Any]
    context: dict[str, Any]
    history: tuple[str, ...]
    history_hash: str
    candidates: tuple[str, ...]
    inputs: dict[str, np.ndarray]
    scores: np.ndarray


def read_answers(folder: Path) -> Iterator[LoggedAnswer]:
    """The answers of all parts of a folder, the newest first. Memory holds a row group of a part.

    Raises:
        ConfigError: no part is there.
        DataError: a part is broken, or of another version.
    """
    parts = sorted(folder.glob("served-*.parquet"), reverse=True)
    if not parts:
        raise ConfigError(f"{folder}: holds no served-….parquet. Name the `log.folder` of the server.")
    for part in parts:
        yield from _of_part(part)


def _of_part(part: Path) -> Iterator[LoggedAnswer]:
    try:
        file = pq.ParquetFile(part)
        if lacking := [name for name in SERVED.names if name not in file.schema_arrow.names]:
            raise DataError(
                f"{part}: no column {lacking[0]!r}: a server of an earlier version wrote it. Move such parts away."
            )
        for group in reversed(range(file.num_row_groups)):
            table = file.read_row_group(group, columns=SERVED.names)
            for end in range(len(table), 0, -BATCH):
                some = table.slice(max(end - BATCH, 0), min(end, BATCH))
                # As whole numbers: a time of its own type would become a Python object that rounds and has a zone.
                times = some.column("time").cast(pa.int64()).to_pylist()
                for row, time in zip(reversed(some.to_pylist()), reversed(times), strict=True):
                    yield _answer(row, time)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{part}: cannot be read: {str(error).splitlines()[0]}. Restore it, or move it away.") from None


def _answer(row: dict[str, Any], time: int) -> LoggedAnswer:
    inputs = {
        one["name"]: np.array(one["indices"], np.int64)
        if one["numbers"] is None
        else np.array(one["numbers"], np.float32)
        for one in row["inputs"]
    }
    return LoggedAnswer(
        request=row["request"],
        version=row["version"],
        time=time,
        user=row["user"],
        user_hashed=row["user_hashed"],
        user_columns=json.loads(row["user_columns"]),
        context=json.loads(row["context"]),
        history=tuple(row["history_items"]),
        history_hash=row["history_hash"],
        candidates=tuple(row["candidates"]),
        inputs=inputs,
        scores=np.array(row["scores"], np.float32),
    )
