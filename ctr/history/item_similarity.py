"""Similarity spaces: the ways in which two items are compared, by cosine of vectors or by the values that they share.

Shapes: U items, W width of one space, K spaces, `...` any leading shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from features.errors import ConfigError
from features.store.schema import FIRST_VALUE, Field, Schema

# Wider than that, a unit vector costs more than comparing index by index.
MOST_TAGS = 64
# Indices that a number of single precision tells apart.
MOST_INDICES = 2**24


class ItemSimilarities(NamedTuple):
    """What is compared of U items, in the order of `SimilaritySpaces.names`.

    Args:
        unit_vectors: [U, W] each, of the spaces that compare by cosine.
        indices: [U, T] each, of the spaces that compare value by value; floats.
    """

    unit_vectors: list[Tensor]
    indices: list[Tensor]

    @property
    def columns(self) -> list[Tensor]:
        """All of them, as the item table holds them."""
        return self.unit_vectors + self.indices


class SimilaritySpaces(nn.Module):
    """One space for each vector set, and one for each tags and categorical column of the items but their id.

    Vectors are compared by cosine, tags and categories (brand, category, a semantic id) by |A ∩ B| / sqrt(|A| |B|),
    for a category 1 or 0: a cosine, too. Tags of at most 64 values are kept as unit vectors, other columns as indices
    in floats, exact up to 2^24. An item that is not in a space (no vector, no tags, an unknown value) has similarity 0
    to all others.

    Args:
        schema: the fields of the feature set.

    Attributes:
        names: of the spaces: those of unit vectors, then those of indices. Columns of the item table follow this order.
        widths: of the spaces, in the same order.

    Raises:
        ConfigError: a column of more than 2^24 values.
    """

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        fields = list(enumerate(schema.item))
        self._tags = [(i, f.size) for i, f in fields if f.kind == "tags" and FIRST_VALUE < f.size <= MOST_TAGS]
        small = [i for i, _ in self._tags]
        self._indexed = [i for i, f in fields[1:] if f.kind != "numeric" and f.size > FIRST_VALUE and i not in small]
        for i in self._indexed:
            require_exact_as_float(schema.item[i], "leave out model.match_features and evidence_heads")
        columns = [*small, *self._indexed]
        self.names = (*(one.name for one in schema.vectors), *(schema.item[i].name for i in columns))
        self.unit_spaces = len(self.names) - len(self._indexed)
        widths = (*(one.width for one in schema.vectors), *(size - FIRST_VALUE for _, size in self._tags))
        self.widths = widths + tuple(schema.item[i].max_len for i in self._indexed)

    def forward(self, columns: Sequence[Tensor], vectors: Sequence[Tensor]) -> ItemSimilarities:
        """Item columns and vectors, in schema order, to what is compared in each space."""
        units = [F.normalize(vector, dim=-1) for vector in vectors]
        dtype = vectors[0].dtype if vectors else torch.float32
        for i, size in self._tags:
            tags = torch.arange(FIRST_VALUE, size, device=columns[i].device)
            has_UW = (columns[i].unsqueeze(-1) == tags).any(dim=-2)
            units.append(F.normalize(has_UW.to(dtype), dim=-1))
        indices = [columns[i].to(dtype) for i in self._indexed]
        return ItemSimilarities(units, [one if one.ndim == 2 else one.unsqueeze(-1) for one in indices])


def require_exact_as_float(field: Field, otherwise: str) -> None:
    """Raise ConfigError where single precision does not tell a column's indices apart.

    Args:
        field: an item column whose indices stand in the item table as numbers.
        otherwise: the settings that need none of it.
    """
    if field.size > MOST_INDICES:
        raise ConfigError(
            f"item column {field.name!r}: {field.size:,} values, but the item table holds its indices in single "
            f"precision, which tells {MOST_INDICES:,} apart: neighbouring values would count as the same. Give the "
            "column fewer values in the data contract (`buckets` of a hashed one, `min_count` of others), or "
            f"{otherwise}."
        )


def tag_cosine(target_RT: Tensor, event_HST: Tensor) -> Tensor:
    """|A ∩ B| / sqrt(|A| |B|) of sets of up to T indices, [R, S]; H is R or 1. What is unknown is in none."""
    known_RT, known_HST = target_RT >= FIRST_VALUE, event_HST >= FIRST_VALUE
    same_RS = ((target_RT[:, None, :, None] == event_HST.unsqueeze(2)) & known_RT[:, None, :, None]).sum(dim=(-2, -1))
    if target_RT.shape[1] == 1:
        return same_RS.to(target_RT.dtype)
    sizes_RS = known_RT.sum(dim=-1, keepdim=True) * known_HST.sum(dim=-1)
    return same_RS.to(target_RT.dtype) * sizes_RS.clamp(min=1).to(target_RT.dtype).rsqrt()
