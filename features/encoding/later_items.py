"""Items that came after the catalogue: an encoder whose item ids go on, with rows behind those of the item table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import polars as pl

from features.encoding.encoder import Encoder
from features.encoding.vocabulary import Vocabulary
from features.store.schema import FIRST_VALUE, UNKNOWN


class LaterIds(Vocabulary):
    """A catalogue, ids that came after it, and ids of it that have another row now.

    Rows go on from the catalogue's end: first one for each new id, then one for each changed id.

    Args:
        known: the catalogue.
        new: ids that it does not have, of its type.
        changed: ids that it has.
    """

    def __init__(self, known: Vocabulary, new: pl.Series, changed: pl.Series) -> None:
        super().__init__(pl.concat([known.values, new.rename(known.values.name)]))
        row_C = known.encode(changed)
        order = np.argsort(row_C)
        self._changed = changed
        self._before_C = row_C[order]
        self._after_C = (self.size + order).astype(np.int32)

    def encode(self, raw: pl.Series) -> np.ndarray:
        """Rows of a column, int32; null and unknown ids are 1."""
        return self._moved(super().encode(raw))

    def index(self, value: Any) -> int:
        """Row of one id."""
        return int(self._moved(np.array([super().index(value)], np.int32))[0])

    def indices(self, values: Sequence[Any]) -> np.ndarray:
        """Row of each of several ids, int64 [N]."""
        return self._moved(super().indices(values)).astype(np.int64)

    def indices_of_numbers(self, number_N: np.ndarray) -> np.ndarray:
        """Row of each of several ids that are whole numbers, int64 [N]."""
        return self._moved(super().indices_of_numbers(number_N)).astype(np.int64)

    def value(self, index: int) -> Any:
        """The id of a row."""
        changed = int(index) - self.size
        return self._changed[changed] if changed >= 0 else super().value(index)

    def _moved(self, row_R: np.ndarray) -> np.ndarray:
        """Rows, those of changed ids replaced. Doing so twice changes nothing: their new rows lie behind all others."""
        if not len(self._before_C):
            return row_R
        place_R = np.minimum(np.searchsorted(self._before_C, row_R), len(self._before_C) - 1)
        return np.where(self._before_C[place_R] == row_R, self._after_C[place_R], row_R)


def with_later_items(
    encoder: Encoder, new: pl.Series, changed: pl.Series, numbers: Mapping[str, np.ndarray] = MappingProxyType({})
) -> Encoder:
    """An encoder that knows these items too; their counters are those of an id without rows, or as they were.

    In counters of an item's column, a new item counts as one of an unknown value, and a changed one as it did before.

    Args:
        encoder: of the catalogue.
        new, changed: as of `LaterIds`.
        numbers: what `encoder.item_numbers` are of these items, float32 by name, the new ones first.
    """
    kept_R = np.concatenate([np.full(len(new), UNKNOWN), encoder.items.encode(changed)])
    snapshot = encoder.snapshot
    of_items = {name for name in snapshot.items if name not in snapshot.keys}
    counters = {
        name: np.concatenate([values, values[kept_R]]) if name in of_items else values
        for name, values in snapshot.items.items()
    }
    states = {name: state.with_copies(kept_R) if name in of_items else state for name, state in snapshot.states.items()}
    columns = {name: np.concatenate([index_I, index_I[kept_R]]) for name, index_I in snapshot.item_columns.items()}
    return replace(
        encoder,
        items=LaterIds(encoder.items, new, changed),
        schema=encoder.schema.model_copy(update={"items": encoder.schema.items + len(new) + len(changed)}),
        snapshot=replace(snapshot, items=counters, states=states, item_columns=columns),
        item_numbers={name: np.concatenate([of_I, numbers[name]]) for name, of_I in encoder.item_numbers.items()},
    )


def is_known(ids: Vocabulary, raw: pl.Series) -> np.ndarray:
    """Which values of a column a catalogue has, bool [R]."""
    return np.asarray(ids.encode(raw) >= FIRST_VALUE)
