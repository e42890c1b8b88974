"""The item delta of a bundle: rows of items that are new or changed since the export, beside the item table.

Shapes: K rows of the delta, D width of a row of the item table.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl

from ctr.serving.bundle import ITEM_DELTA
from features.encoding.encoder import Encoder
from features.encoding.later_items import is_known, with_later_items
from features.encoding.vocabulary import Vocabulary
from features.errors import DataError

ROWS = f"{ITEM_DELTA}.bin"
IDS = f"{ITEM_DELTA}.arrow"
ID, IS_NEW, NUMBER = "value", "is_new", "number."


@dataclass(frozen=True)
class ItemDelta:
    """Rows that the graph reads behind those of the item table.

    Args:
        new: ids that the catalogue does not have.
        changed: ids that it has, whose rows are replaced.
        rows_KD: float32 [K, D], one row for each new id, then one for each changed id.
        numbers: item columns that request-relative ones compare, encoded, float32 [K] by name.
    """

    new: pl.Series
    changed: pl.Series
    rows_KD: np.ndarray
    numbers: Mapping[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def empty(cls, encoder: Encoder, width: int) -> ItemDelta:
        """No row."""
        none = encoder.items.values[:0]
        numbers = {name: np.empty(0, np.float32) for name in encoder.item_numbers}
        return cls(none, none, np.empty((0, width), np.float32), numbers)

    @classmethod
    def load(cls, folder: Path, width: int) -> ItemDelta | None:
        """The delta of a bundle, memory-mapped; None where nothing was upserted since its export.

        Raises:
            DataError: the two files do not belong together.
        """
        if not (folder / IDS).is_file():
            return None
        ids = pl.read_ipc(folder / IDS)
        size = (folder / ROWS).stat().st_size
        if size != 4 * width * len(ids):
            raise DataError(
                f"{folder / ROWS}: {size} bytes, which are not the {len(ids)} rows of {width} numbers that {IDS} names."
            )
        rows_KD = np.memmap(folder / ROWS, np.float32, mode="r", shape=(len(ids), width))
        numbers = {name.removeprefix(NUMBER): ids[name].to_numpy() for name in ids.columns if name.startswith(NUMBER)}
        return cls(ids.filter(IS_NEW)[ID], ids.filter(~pl.col(IS_NEW))[ID], rows_KD, numbers)

    def save(self, folder: Path) -> None:
        """Write `item_delta.bin` and `item_delta.arrow`."""
        np.ascontiguousarray(self.rows_KD).tofile(folder / ROWS)
        ids = pl.concat([self.new.rename(ID), self.changed.rename(ID)])
        is_new = np.arange(len(ids)) < len(self.new)
        numbers = {NUMBER + name: values for name, values in self.numbers.items()}
        pl.DataFrame({ID: ids, IS_NEW: is_new, **numbers}).write_ipc(folder / IDS, compression="uncompressed")

    def digest(self) -> str:
        """Eight hexadecimal digits of all that it holds."""
        numbers = dict(sorted(self.numbers.items()))
        names = json.dumps([self.new.to_list(), self.changed.to_list(), list(numbers)])
        found = hashlib.sha256(names.encode())
        for values in (self.rows_KD, *numbers.values()):
            found.update(np.ascontiguousarray(values).data)
        return found.hexdigest()[:8]

    def with_rows(
        self, ids: pl.Series, rows_MD: np.ndarray, catalogue: Vocabulary, columns: Mapping[str, np.ndarray]
    ) -> ItemDelta:
        """With these rows too; an id that the delta has already gets its new row.

        Args:
            ids: distinct, of the catalogue's type.
            rows_MD: float32 [M, D].
            catalogue: of the export.
            columns: of these items, encoded, at least those of `numbers`.
        """
        before = pl.concat([self.new.rename(ID), self.changed.rename(ID)])
        stays = ~before.is_in(ids.implode())
        all_ids = pl.concat([before.filter(stays), ids.rename(ID)])
        rows_KD = np.concatenate([self.rows_KD[stays.to_numpy()], rows_MD])
        known_K = is_known(catalogue, all_ids)
        order = np.argsort(known_K, kind="stable")
        numbers = {
            name: np.concatenate([values[stays.to_numpy()], columns[name]])[order]
            for name, values in self.numbers.items()
        }
        return ItemDelta(all_ids.filter(~known_K), all_ids.filter(known_K), rows_KD[order], numbers)

    def onto(self, encoder: Encoder) -> Encoder:
        """The encoder of the export with these items."""
        return with_later_items(encoder, self.new, self.changed, self.numbers)
