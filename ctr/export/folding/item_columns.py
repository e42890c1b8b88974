"""What rows of the item table are made of.

Shapes: `...` the axes of the rows.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

Pair = tuple[Tensor, Tensor]


class ItemColumns(NamedTuple):
    """What rows of the item table are made of; the first axes are those of the rows.

    Args:
        x: the representation of an item.
        unit_vectors, indices: its place in each similarity space.
        crossed: the columns that are crossed with the context's; None without crosses.
        of_trees: the item's columns as trees read them; None without trees.
    """

    x: Tensor
    unit_vectors: list[Tensor]
    indices: list[Tensor]
    crossed: Tensor | None
    of_trees: Tensor | None

    def pairs(self, past: ItemColumns, dtype: torch.dtype | None = None) -> tuple[list[Pair], list[Pair]]:
        """Targets beside past items, in each space of unit vectors and of indices; in their precision, or `dtype`."""

        def pairs_of(ours: list[Tensor], theirs: list[Tensor]) -> list[Pair]:
            return [
                (one.to(dtype or one.dtype), two.to(dtype or two.dtype)) for one, two in zip(ours, theirs, strict=True)
            ]

        return pairs_of(self.unit_vectors, past.unit_vectors), pairs_of(self.indices, past.indices)


class Past(NamedTuple):
    """The events of one request, or of several.

    Args:
        items: of the events.
        mask: 1 at an event, 0 at padding.
        events: raw event columns.
    """

    items: ItemColumns
    mask: Tensor
    events: list[Tensor]
