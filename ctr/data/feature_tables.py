"""The frozen side of a feature set: item and user columns and item vectors, as tensors to gather from."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from features.errors import DataError
from features.store.feature_set import FeatureSet
from features.store.schema import FIRST_VALUE, Field, Schema


@dataclass(frozen=True)
class FrozenTables:
    """What never trains. Row i of every item (user) tensor is item (user) row i of the catalogue.

    Args:
        items: item columns by field name; int32 [items], int32 [items, max_len] for tags, float32 [items].
            A column that changes goes on behind them: [items + item_versions], the stacked table of
            `features.store.versions`.
        users: user columns, in the same form, [users] or [users + user_versions].
        vectors: one [items, width] per vector set as it is stored, float32, float16 or int8; zeros where an item
            has none.
        present: one bool [items] per vector set: which items have a vector.
        scales: one float32 [items] per vector set of int8, by which its vectors are multiplied.
        item_versions, user_versions: how many versions all items (users) have; 0 where nothing changes.
    """

    items: dict[str, Tensor]
    users: dict[str, Tensor] = field(default_factory=dict)
    vectors: dict[str, Tensor] = field(default_factory=dict)
    present: dict[str, Tensor] = field(default_factory=dict)
    scales: dict[str, Tensor] = field(default_factory=dict)
    item_versions: int = 0
    user_versions: int = 0

    def with_vectors_moved(self, order_I: Tensor, sets: Iterable[str]) -> FrozenTables:
        """The tables in which item i has the vectors of item `order_I[i]`: vector, presence and scale move together.

        Args:
            order_I: int64 [items], e.g. of `order_among_real`.
            sets: names of the vector sets; the others stay.
        """

        def moved(columns: dict[str, Tensor]) -> dict[str, Tensor]:
            return columns | {name: columns[name][order_I] for name in sets if name in columns}

        sets = tuple(sets)
        return replace(self, vectors=moved(self.vectors), present=moved(self.present), scales=moved(self.scales))


def order_among_real(rows: int, draw: torch.Generator) -> Tensor:
    """A random order of table rows, int64 [rows], that leaves padding and unknown where they are."""
    real = torch.randperm(rows - FIRST_VALUE, generator=draw) + FIRST_VALUE
    return torch.cat([torch.arange(FIRST_VALUE), real])


def frozen_tables(feature_set: FeatureSet) -> FrozenTables:
    """The tables of a feature set, on their memory maps where the files allow it: nothing is copied or decoded.

    Columns with versions are copied: the latest and all versions stand in one table.
    """
    item_versions, user_versions = feature_set.item_versions, feature_set.user_versions
    items = feature_set.items | (item_versions.stacked if item_versions else {})
    users = feature_set.users | (user_versions.stacked if user_versions else {})
    sets = [vectors.name for vectors in feature_set.schema.vectors]
    stored = {name: feature_set.stored_vectors(name) for name in sets}
    return FrozenTables(
        items={name: _tensor(values) for name, values in items.items()},
        users={name: _tensor(values) for name, values in users.items()},
        vectors={name: _tensor(vectors) for name, (vectors, _) in stored.items()},
        present={name: _tensor(feature_set.present(name)) for name in sets},
        scales={name: _tensor(scale) for name, (_, scale) in stored.items() if scale is not None},
        item_versions=len(item_versions.row_V) if item_versions else 0,
        user_versions=len(user_versions.row_V) if user_versions else 0,
    )


class TableBuffers(nn.Module):
    """The tables one model reads, as buffers that follow it to its device but stay out of its checkpoint.

    Args:
        tables: all tables of the feature set.
        schema: the fields of the feature set.
        user_fields: the user columns that the model reads; the others are not kept.
        like: a parameter of the model; its device holds the buffers. Floats come out in its dtype; vectors lie
            as they are stored until they are looked up.

    Raises:
        DataError: a table is missing or has not one row per item (user).
    """

    def __init__(
        self,
        tables: FrozenTables,
        schema: Schema,
        user_fields: Sequence[Field],
        like: Tensor,
    ) -> None:
        super().__init__()
        sets = [vectors.name for vectors in schema.vectors]
        self._changing: set[str] = set()
        # Buffers go by position: a column may be called `type`, or hold a dot, which no buffer name can.
        item_names, user_names = (f.name for f in schema.item), (f.name for f in user_fields)
        self._item = self._keep("item", tables.items, item_names, schema.items, like, versions=tables.item_versions)
        self._user = self._keep("user", tables.users, user_names, schema.users, like, versions=tables.user_versions)
        self._vector = self._keep("vector", tables.vectors, sets, schema.items, like, as_stored=True)
        self._present = self._keep("present", tables.present, sets, schema.items, like)
        scaled = [name for name in sets if tables.vectors[name].dtype == torch.int8]
        scales = self._keep("scale", tables.scales, scaled, schema.items, like)
        self._scale = dict(zip((self._vector[sets.index(name)] for name in scaled), scales, strict=True))
        self._dtype = like.dtype

    def item_columns(self, rows: Tensor, versions: Tensor | None = None) -> list[Tensor]:
        """Item columns at these item rows, in the order of `schema.item`.

        Columns that change are read at `versions`, rows of the stacked table; the latest ones without.
        """
        return self._gather(self._item, rows, versions)

    def user_columns(self, rows: Tensor, versions: Tensor | None = None) -> list[Tensor]:
        """User columns at these user rows, in the order of `user_fields`; `versions` as of `item_columns`."""
        return self._gather(self._user, rows, versions)

    def vectors(self, rows: Tensor) -> list[Tensor]:
        """Item vectors at these item rows, [rows, width] each, in the order of `schema.vectors`."""
        found = []
        for name in self._vector:
            vectors = self.get_buffer(name).index_select(0, rows).to(self._dtype)
            if name in self._scale:
                vectors = vectors * self.get_buffer(self._scale[name]).index_select(0, rows).unsqueeze(-1)
            found.append(vectors)
        return found

    def present(self, rows: Tensor) -> list[Tensor]:
        """Whether these item rows have a vector, bool [rows] each, in the order of `schema.vectors`."""
        return self._gather(self._present, rows)

    def _keep(
        self,
        side: str,
        table: Mapping[str, Tensor],
        columns: Iterable[str],
        rows: int,
        like: Tensor,
        as_stored: bool = False,
        versions: int = 0,
    ) -> list[str]:
        names = []
        for position, column in enumerate(columns):
            if column not in table:
                known = ", ".join(sorted(table)) or "none"
                raise DataError(
                    f"{side} table: no {column!r} (it holds: {known}). The model was made for another "
                    "feature set; train it on this one."
                )
            values = table[column]
            if len(values) not in (rows, rows + versions):
                raise DataError(
                    f"{side} table {column!r}: {len(values):,} rows where the schema has {rows:,}. "
                    "Build the feature set again with `quadrank features`."
                )
            dtype = like.dtype if values.is_floating_point() and not as_stored else values.dtype
            names.append(f"{side}_{position}")
            if len(values) > rows:
                self._changing.add(names[-1])
            self.register_buffer(names[-1], values.to(like.device, dtype), persistent=False)
        return names

    def _gather(self, names: Sequence[str], rows: Tensor, versions: Tensor | None = None) -> list[Tensor]:
        at = dict.fromkeys(self._changing, versions) if versions is not None else {}
        return [self.get_buffer(name).index_select(0, at.get(name, rows)) for name in names]


def _tensor(values: np.ndarray) -> Tensor:
    with warnings.catch_warnings():
        # The memory map is read-only and nothing writes to it; torch has no read-only tensors.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(values)
