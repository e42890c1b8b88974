"""The item delta of a bundle: rows of items that are new or changed since the export, beside the item table.

Shapes: K rows of the delta, D width of a row of the item table.
"""

from __future__ import annotations

from dataclasses import dataclass
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
ID, IS_NEW = "value", "is_new"


@dataclass(frozen=True)
class ItemDelta:
    """Rows that the graph reads behind those of the item table.

    Args:
        new: ids that the catalogue does not have.
        changed: ids that it has, whose rows are replaced.
        rows_KD: float32 [K, D], one row for each new id, then one for each changed id.
    """

    new: pl.Series
    changed: pl.Series
    rows_KD: np.ndarray

    @classmethod
    def empty(cls, catalogue: Vocabulary, width: int) -> ItemDelta:
        """No row."""
        return cls(catalogue.values[:0], catalogue.values[:0], np.empty((0, width), np.float32))

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
        return cls(ids.filter(IS_NEW)[ID], ids.filter(~pl.col(IS_NEW))[ID], rows_KD)

    def save(self, folder: Path) -> None:
        """Write `item_delta.bin` and `item_delta.arrow`."""
        np.ascontiguousarray(self.rows_KD).tofile(folder / ROWS)
        ids = pl.concat([self.new.rename(ID), self.changed.rename(ID)])
        is_new = np.arange(len(ids)) < len(self.new)
        pl.DataFrame({ID: ids, IS_NEW: is_new}).write_ipc(folder / IDS, compression="uncompressed")

    def with_rows(self, ids: pl.Series, rows_MD: np.ndarray, catalogue: Vocabulary) -> ItemDelta:
        """With these rows too; an id that the delta has already gets its new row.

        Args:
            ids: distinct, of the catalogue's type.
            rows_MD: float32 [M, D].
            catalogue: of the export.
        """
        before = pl.concat([self.new.rename(ID), self.changed.rename(ID)])
        stays = ~before.is_in(ids.implode())
        all_ids = pl.concat([before.filter(stays), ids.rename(ID)])
        rows_KD = np.concatenate([self.rows_KD[stays.to_numpy()], rows_MD])
        known_K = is_known(catalogue, all_ids)
        order = np.argsort(known_K, kind="stable")
        return ItemDelta(all_ids.filter(~known_K), all_ids.filter(known_K), rows_KD[order])

    def onto(self, encoder: Encoder) -> Encoder:
        """The encoder of the export with these items."""
        return with_later_items(encoder, self.new, self.changed)
