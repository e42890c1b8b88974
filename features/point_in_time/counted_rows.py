"""What counters read of every row of the log, kept on disk: the log is encoded once, however many keys are counted by.

Shapes: R rows of the log.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from features.chunk import Chunk
from features.contract.log import Counter
from features.point_in_time.encoded_log import EncodedLog
from features.store.key_rows import combined

ROWS_A_CHUNK = 500_000


class CountedRows:
    """The rows of the log in its order, by column; memory holds a chunk of them.

    Args:
        columns: memory-mapped, by the names of `Chunk.columns`.
    """

    def __init__(self, columns: Mapping[str, np.ndarray]) -> None:
        self.columns = columns
        self.rows = len(columns["time"])

    @classmethod
    def write(cls, stream: EncodedLog, folder: Path) -> CountedRows:
        """Encode the log once, and keep what counters read in this folder, which must not exist."""
        folder.mkdir(parents=True)
        types: dict[str, np.dtype] = {}
        with ExitStack() as stack:
            files: dict[str, IO[bytes]] = {}
            for chunk in stream.counted():
                for name, values in _read(chunk).items():
                    if name not in files:
                        # Numbered, since a column's name may hold what a file's must not.
                        files[name] = stack.enter_context((folder / str(len(files))).open("wb"))
                        types[name] = values.dtype
                    values.tofile(files[name])
        mapped = {name: np.memmap(folder / str(number), types[name], "r") for number, name in enumerate(types)}
        return cls(mapped)

    def chunks(self) -> Iterator[dict[str, np.ndarray]]:
        """Chunks of all columns, and of `place`: the number of the row in the log."""
        for first in range(0, self.rows, ROWS_A_CHUNK):
            found = {name: values[first : first + ROWS_A_CHUNK] for name, values in self.columns.items()}
            yield found | {"place": np.arange(first, min(first + ROWS_A_CHUNK, self.rows))}


def _read(chunk: Chunk) -> dict[str, np.ndarray]:
    unread = ("is_event", "is_row", "is_from_tail", "file")
    return {name: values for name, values in chunk.columns().items() if name not in unread}


class Parts(NamedTuple):
    """Where the parts of keys come from.

    Args:
        tables: encoded columns of the item and user tables that keys have, by side.
        all_sizes: one more than the largest index of each part, by its name.
        sides: of each part.
    """

    tables: Mapping[str, Mapping[str, np.ndarray]]
    all_sizes: Mapping[str, int]
    sides: Mapping[str, str]

    @classmethod
    def of(cls, stream: EncodedLog, item_table: Mapping[str, np.ndarray]) -> Parts:
        """Those of the contract's counters."""
        encoder, sides = stream.encoder, stream.contract.counter_sides
        sections = {"item": encoder.item, "user": encoder.user, "context": encoder.context}
        sizes = {"item": encoder.schema.items, "user": encoder.schema.users}
        sizes |= {key: sections[side][key].field(key).size for key, side in sides.items() if key not in sizes}
        tables = {
            side: {key: table[key] for key, its in sides.items() if its == side and key != side}
            for side, table in (("item", item_table), ("user", encoder.user_table))
        }
        return cls(tables, sizes, sides)

    def sizes(self, keys: tuple[str, ...]) -> tuple[int, ...]:
        """Of the parts of a key."""
        return tuple(self.all_sizes[key] for key in keys)

    def key(self, keys: tuple[str, ...], rows: Mapping[str, np.ndarray]) -> np.ndarray:
        """The combined key of each row, int64 [R]."""
        return combined([self._part(key, rows) for key in keys], self.sizes(keys))

    def _part(self, key: str, rows: Mapping[str, np.ndarray]) -> np.ndarray:
        side = self.sides[key]
        if side == "context":
            return rows[f"context/{key}"]
        return rows[side] if key == side else self.tables[side][key][rows[side]]


def amount_of(name: str, counter: Counter) -> str:
    """The column that a counter adds up, as `Chunk.columns` calls it."""
    if counter.number is not None:
        return f"numbers/{name}"
    return "label" if counter.label is None else f"labels/{counter.label}"
