"""Similarity spaces: the ways in which two items are compared, by cosine of vectors or by the values that they share.

Shapes: U items (or, where targets of several requests are compared, requests), W width of one space, K spaces, T
indices of an item, R rows, H histories (R, or 1), S positions, `...` any leading shape.
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
# A column of more values is compared index by index: a place for each would cost more to clear.
MOST_PLACES = 2**16


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
        sizes: how many values the columns of the spaces of indices have, in the same order.

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
        self.sizes = tuple(schema.item[i].size for i in self._indexed)

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
    # No index is -1: so what is unknown of a target equals nothing.
    target_RT = target_RT.masked_fill(~known_RT, -1)
    if target_RT.shape[1] == 1:
        return (target_RT == event_HST.squeeze(-1)).to(target_RT.dtype)
    same_RS = (target_RT[:, None, :, None] == event_HST.unsqueeze(2)).sum(dim=(-2, -1))
    sizes_RS = known_RT.sum(dim=-1, keepdim=True) * known_HST.sum(dim=-1)
    return same_RS.to(target_RT.dtype) * sizes_RS.clamp(min=1).to(target_RT.dtype).rsqrt()


def tag_cosine_of_requests(target_RT: Tensor, event_UST: Tensor, size: int) -> Tensor:
    """`tag_cosine` of many targets and few histories, [R, S], in which no pair of indices is compared.

    Each index of a request's P = S · T has a place, one of P. A place has a row: the part of its index in the cosine
    with each event. A target adds up the rows of its indices, T · S additions where comparing takes T · T · S steps.

    Args:
        target_RT: indices, as numbers, of R = U · N targets; those of a request follow each other.
        event_UST: indices, as numbers, of the events of U requests.
        size: how many values the column has; each index is below it.
    """
    requests, positions, tags = event_UST.shape
    if tags == 1 or size > MOST_PLACES:
        return _each_compared(target_RT, event_UST)
    dtype, device = target_RT.dtype, target_RT.device
    known_RT, known_UST = target_RT >= FIRST_VALUE, event_UST >= FIRST_VALUE
    index_UP = event_UST.long().flatten(1)
    # An index that comes again has its last place. Place 0, of what is in no event, has a row of zeros, and so have
    # the places of what is unknown.
    number_UP = torch.arange(1, positions * tags + 1, device=device).expand_as(index_UP)
    place_UV = index_UP.new_zeros(requests, size).scatter_reduce(1, index_UP, number_UP, "amax")
    part_UST = known_UST * _inverse_root_of_count(known_UST, dtype)
    position_P = torch.arange(positions, device=device).unsqueeze(1).expand(-1, tags).flatten()
    cell_UP = place_UV.gather(1, index_UP) * positions + position_P
    places = positions * tags + 1
    rows_UC = part_UST.new_zeros(requests, places * positions).scatter_add(1, cell_UP, part_UST.flatten(1))
    place_UM = place_UV.gather(1, target_RT.long().view(requests, -1))
    row_UM = place_UM + places * torch.arange(requests, device=device).unsqueeze(1)
    sums_RS = F.embedding(row_UM.view(-1, tags), rows_UC.view(-1, positions)).sum(dim=1)
    return sums_RS * _inverse_root_of_count(known_RT, dtype)


def _inverse_root_of_count(known: Tensor, dtype: torch.dtype) -> Tensor:
    """1 / sqrt(how many of the last axis are known), [..., 1]; 1 where none is."""
    return known.sum(dim=-1, keepdim=True).clamp(min=1).to(dtype).rsqrt()


def _each_compared(target_RT: Tensor, event_UST: Tensor) -> Tensor:
    """`tag_cosine` of the targets of each request and its events, [R, S]."""
    requests, positions, tags = event_UST.shape
    targets = target_RT.shape[0] // requests
    event_RST = event_UST.unsqueeze(1).expand(-1, targets, -1, -1).reshape(-1, positions, tags)
    return tag_cosine(target_RT, event_UST if requests == 1 else event_RST)
