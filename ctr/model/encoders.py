"""From encoded columns to dense vectors: categories, tags, numbers, and projected item vectors.

Shapes: `...` a leading shape of any rank, T tags of one row, E embedding width, W vector width, D item width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ctr.config import ModelConfig
from ctr.kernels.bag_products import RowBags
from ctr.model.numbers import PiecewiseNumbers, StraightNumbers
from ctr.model.sparse_embedding import INITIAL_STD, RowTable
from features.store.schema import PADDING, Field, VectorSet


class FieldEncoder(nn.Module):
    """Encodes a list of columns by their semantic type and concatenates the results.

        categorical -> E[index];  tags -> mean of E[index] over entries that are not padding;
        numeric -> one sum of curves, a block for each up to four (`ctr.model.numbers`)

    Index 0 embeds to zeros, and stays so. Columns are given in the order of `fields`, never by name, so a
    user column and a context column may share a name.

    Args:
        fields: the columns; none at all gives a width of 0.
        embedding_dim: width E of every block.
        straight: all numeric columns together are one block instead, linear in each.

    Example:
        >>> encoder = FieldEncoder([Field(name="genre", kind="categorical", size=20)], embedding_dim=8)
        >>> encoder([torch.tensor([2, 0, 5])]).shape
        torch.Size([3, 8])
    """

    def __init__(self, fields: Sequence[Field], embedding_dim: int, straight: bool = False) -> None:
        super().__init__()
        self.fields = tuple(fields)
        indexed = [field for field in self.fields if field.kind != "numeric"]
        numbers = [field for field in self.fields if field.kind == "numeric"]
        self.tables = nn.ModuleList(RowTable(field.size, embedding_dim) for field in indexed)
        self.numeric: StraightNumbers | PiecewiseNumbers | None = None
        if numbers:
            if straight:
                self.numeric = StraightNumbers(len(numbers), embedding_dim)
            else:
                self.numeric = PiecewiseNumbers(numbers, embedding_dim)
        self.widths = (embedding_dim,) * len(indexed) + (self.numeric.widths if self.numeric is not None else ())
        self.width = sum(self.widths)

    def forward(self, columns: Sequence[Tensor]) -> Tensor:
        """Columns of int64 [...], int64 [..., T] for tags, or float [...] (NaN = missing) to [..., width]."""
        return torch.cat(self.blocks(columns), dim=-1)

    def blocks(self, columns: Sequence[Tensor]) -> list[Tensor]:
        """As `forward`, each block [..., its width] by itself."""
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
            blocks.append(self.numeric(torch.stack(numbers, dim=-1)))
        return blocks

    def embedding_weights(self) -> list[nn.Parameter]:
        """The embedding tables, for L2."""
        return list(self.tables.parameters())


class VectorEncoder(nn.Module):
    """Projects one set of frozen item vectors: `P v`, or a learned default where an item has no vector.

    Args:
        vectors: the set. A complete one has no default to learn; an item that still lacks one is zeros.
        projected_dim: width of the result.
        hide: modality dropout, the chance that training treats an item as having no vector (MultiModN). A default is
            then learned even for a complete set.
        norm: layer norm after the projection, so that the scale of a set does not weight it.
    """

    missing: Tensor

    def __init__(self, vectors: VectorSet, projected_dim: int, hide: float = 0.0, norm: bool = False) -> None:
        super().__init__()
        self.hide = hide
        self.always_there = vectors.complete and not hide
        self.projection = nn.Linear(vectors.width, projected_dim, bias=False)
        self.norm = nn.LayerNorm(projected_dim) if norm else None
        if self.always_there:
            self.register_buffer("missing", torch.zeros(projected_dim), persistent=False)
        else:
            self.missing = nn.Parameter(torch.empty(projected_dim))
            nn.init.normal_(self.missing, std=INITIAL_STD)

    def forward(self, vector: Tensor, present: Tensor) -> Tensor:
        """Float [..., W] and bool [...] to float [..., projected_dim]."""
        projected = self.projection(vector)
        if self.norm is not None:
            projected = self.norm(projected)
        if self.training and self.always_there and self.norm is None:
            # An item without a vector has zeros, and so has its projection: the same as below. A norm would add a bias.
            return projected
        if self.training and self.hide:
            present = present & (torch.rand(present.shape, device=present.device) >= self.hide)
        return torch.where(present.unsqueeze(-1), projected, self.missing)


class ItemEncoder(nn.Module):
    """One item to its representation `x = [E_id ; mean E_tags ; … ; numbers ; g_1 P_1 v_1 ; …]`.

    Without `vector_gate` all gates are 1; with it `g = 2 sigmoid(W [P_1 v_1 ; P_2 v_2 ; …] + b)`, one number a set and
    item (LIRDRec gates modalities so), which `gates` reports.

    Args:
        fields: columns of the item table, its id first.
        vectors: the vector sets.
        config: widths and options.
    """

    def __init__(self, fields: Sequence[Field], vectors: Sequence[VectorSet], config: ModelConfig) -> None:
        super().__init__()
        width = config.vector_dim
        self.columns = FieldEncoder(fields, config.embedding_dim)
        self.vectors = nn.ModuleList(
            VectorEncoder(one, width, config.modality_dropout, config.vector_gate) for one in vectors
        )
        self.gate = nn.Linear(width * len(vectors), len(vectors)) if config.vector_gate and vectors else None
        self.widths = (*self.columns.widths, *(width for _ in vectors))
        self.width = sum(self.widths)

    def forward(self, columns: Sequence[Tensor], vectors: Sequence[Tensor], present: Sequence[Tensor]) -> Tensor:
        """Item columns, vectors and their presence, each in schema order, to x [..., D]; in autocast's precision."""
        projected = self._projected(vectors, present)
        if self.gate is not None:
            gates = self._gates(projected)
            projected = [gates[..., [i]] * block for i, block in enumerate(projected)]
        blocks = [*self.columns.blocks(columns), *projected]
        device = blocks[0].device.type
        if torch.is_autocast_enabled(device):
            # The largest tensor of a step, with its gradient: read by products that are in half precision anyway.
            blocks = [block.to(torch.get_autocast_dtype(device)) for block in blocks]
        return torch.cat(blocks, dim=-1)

    def gates(self, vectors: Sequence[Tensor], present: Sequence[Tensor]) -> Tensor | None:
        """The gate of each vector set, [..., sets] from 0 to 2; None without `vector_gate`."""
        return None if self.gate is None else self._gates(self._projected(vectors, present))

    def projection_weights(self) -> list[nn.Parameter]:
        """The vector projections, for L2."""
        encoders = [one for one in self.vectors if isinstance(one, VectorEncoder)]
        return [weight for one in encoders for weight in one.projection.parameters()]

    def _projected(self, vectors: Sequence[Tensor], present: Sequence[Tensor]) -> list[Tensor]:
        triples = zip(self.vectors, vectors, present, strict=True)
        return [encode(vector, there) for encode, vector, there in triples]

    def _gates(self, projected: Sequence[Tensor]) -> Tensor:
        assert self.gate is not None
        return 2 * torch.sigmoid(self.gate(torch.cat(list(projected), dim=-1)))


def _mean_of_tags(table: nn.Module, index: Tensor) -> Tensor:
    assert isinstance(table, RowTable)
    real = (index != PADDING).to(table.weight.dtype)
    share = real / real.sum(dim=-1, keepdim=True).clamp(min=1)
    if table.training:
        rows, position = table.gather(index)
        mean: Tensor = RowBags(rows, position.flatten(0, -2)).sums(share.flatten(0, -2))
        return mean.view(*index.shape[:-1], -1)
    # Gather and mask: nn.EmbeddingBag exports to ONNX as a loop, 150 times slower.
    return (share.unsqueeze(-2) @ table(index)).squeeze(-2)
