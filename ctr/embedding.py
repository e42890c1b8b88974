"""From encoded columns to dense vectors: categories, tags, numbers, and projected item vectors.

Shapes: `...` a leading shape of any rank, T tags of one row, E embedding width, W vector width, D item width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ctr.row_bags import RowBags
from ctr.row_table import INITIAL_STD, RowTable
from features.schema import PADDING, Field, VectorSet


class FieldEncoder(nn.Module):
    """Encodes a list of columns by their semantic type and concatenates the results.

        categorical -> E[index];  tags -> mean of E[index] over entries that are not padding;
        all numeric columns together -> W [value, is missing], one block of width E

    Index 0 embeds to zeros, and stays so. Columns are given in the order of `fields`, never by name, so a
    user column and a context column may share a name.

    Args:
        fields: the columns; none at all gives a width of 0.
        embedding_dim: width E of every table and of the numeric block.

    Example:
        >>> encoder = FieldEncoder([Field(name="genre", kind="categorical", size=20)], embedding_dim=8)
        >>> encoder([torch.tensor([2, 0, 5])]).shape
        torch.Size([3, 8])
    """

    def __init__(self, fields: Sequence[Field], embedding_dim: int) -> None:
        super().__init__()
        self.fields = tuple(fields)
        indexed = [field for field in self.fields if field.kind != "numeric"]
        numbers = len(self.fields) - len(indexed)
        self.tables = nn.ModuleList(RowTable(field.size, embedding_dim) for field in indexed)
        self.numeric = nn.Linear(2 * numbers, embedding_dim, bias=False) if numbers else None
        self.width = embedding_dim * (len(indexed) + bool(numbers))

    def forward(self, columns: Sequence[Tensor]) -> Tensor:
        """Columns of int64 [...], int64 [..., T] for tags, or float [...] (NaN = missing) to [..., width]."""
        blocks, numbers = [], []
        tables = iter(self.tables)
        for field, column in zip(self.fields, columns, strict=True):
            if field.kind == "numeric":
                numbers.append(column)
            elif field.kind == "tags":
                blocks.append(_mean_of_tags(next(tables), column))
            else:
                blocks.append(next(tables)(column))
        if self.numeric is not None:
            blocks.append(self.numeric(_with_missing_flags(torch.stack(numbers, dim=-1))))
        return torch.cat(blocks, dim=-1)

    def embedding_weights(self) -> list[nn.Parameter]:
        """The embedding tables, for L2."""
        return list(self.tables.parameters())


class VectorEncoder(nn.Module):
    """Projects one set of frozen item vectors: `P v`, or a learned default where an item has no vector.

    Args:
        vectors: the set. A complete one has no default to learn; an item that still lacks one is zeros.
        projected_dim: width of the result.
    """

    missing: Tensor

    def __init__(self, vectors: VectorSet, projected_dim: int) -> None:
        super().__init__()
        self.complete = vectors.complete
        self.projection = nn.Linear(vectors.width, projected_dim, bias=False)
        if vectors.complete:
            self.register_buffer("missing", torch.zeros(projected_dim), persistent=False)
        else:
            self.missing = nn.Parameter(torch.empty(projected_dim))
            nn.init.normal_(self.missing, std=INITIAL_STD)

    def forward(self, vector: Tensor, present: Tensor) -> Tensor:
        """Float [..., W] and bool [...] to float [..., projected_dim]."""
        if self.training and self.complete:
            return self.projection(vector)  # of zeros, where an item still lacks one, it is zeros too
        return torch.where(present.unsqueeze(-1), self.projection(vector), self.missing)


class ItemEncoder(nn.Module):
    """One item to its representation `x = [E_id ; mean E_tags ; … ; numbers ; P_1 v_1 ; P_2 v_2 ; …]`.

    Args:
        fields: columns of the item table, its id first.
        vectors: the vector sets.
        embedding_dim: width of each field's block.
        projected_dim: width of each vector set's block.
    """

    def __init__(
        self, fields: Sequence[Field], vectors: Sequence[VectorSet], embedding_dim: int, projected_dim: int
    ) -> None:
        super().__init__()
        self.columns = FieldEncoder(fields, embedding_dim)
        self.vectors = nn.ModuleList(VectorEncoder(one, projected_dim) for one in vectors)
        self.width = self.columns.width + projected_dim * len(vectors)

    def forward(self, columns: Sequence[Tensor], vectors: Sequence[Tensor], present: Sequence[Tensor]) -> Tensor:
        """Item columns, vectors and their presence, each in schema order, to x [..., D]; in autocast's precision."""
        projected = [
            encode(vector, there) for encode, vector, there in zip(self.vectors, vectors, present, strict=True)
        ]
        blocks = [self.columns(columns), *projected]
        device = blocks[0].device.type
        if torch.is_autocast_enabled(device):
            # The largest tensor of a step, with its gradient: read by products that are in half precision anyway.
            blocks = [block.to(torch.get_autocast_dtype(device)) for block in blocks]
        return torch.cat(blocks, dim=-1)

    def projection_weights(self) -> list[nn.Parameter]:
        """The vector projections, for L2."""
        encoders = (one for one in self.vectors if isinstance(one, VectorEncoder))
        return [weight for one in encoders for weight in one.projection.parameters()]


def _mean_of_tags(table: nn.Module, index: Tensor) -> Tensor:
    assert isinstance(table, RowTable)
    real = (index != PADDING).to(table.weight.dtype)
    share = real / real.sum(dim=-1, keepdim=True).clamp(min=1)
    if table.training:
        rows, place = table.gather(index)
        mean: Tensor = RowBags(rows, place.flatten(0, -2)).sums(share.flatten(0, -2))
        return mean.view(*index.shape[:-1], -1)
    # Gather and mask: nn.EmbeddingBag exports to ONNX as a loop, 150 times slower.
    return (share.unsqueeze(-2) @ table(index)).squeeze(-2)


def _with_missing_flags(values: Tensor) -> Tensor:
    missing = torch.isnan(values)
    filled = torch.where(missing, torch.zeros_like(values), values)
    return torch.cat([filled, missing.to(values.dtype)], dim=-1)
