"""Event columns of histories: products with their embeddings, computed without embedding each event.

Shapes: B rows, S history positions, E width of all embedded event columns, V values of a column, N numeric columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, reduce

import torch
from torch import Tensor

from ctr.history.history_events import Events
from ctr.kernels.bag_products import RowBags
from ctr.model.encoders import FieldEncoder
from ctr.model.numbers import StraightNumbers, with_missing_flags
from ctr.model.sparse_embedding import RowTable
from features.store.schema import PADDING, Field


class EventEncoder(FieldEncoder):
    """A `FieldEncoder` of event columns, which are categorical or numeric, never tags; linear in numbers.

    Args:
        fields: the columns.
        embedding_dim: width of each categorical column, and of all numbers together.
    """

    def __init__(self, fields: Sequence[Field], embedding_dim: int) -> None:
        super().__init__(fields, embedding_dim, straight=True)

    def events(self, columns: Sequence[Tensor]) -> ColumnEvents:
        """The events of columns [B, S], in the order of `fields`."""
        return ColumnEvents(self, columns)


class ColumnEvents(Events):
    """Events as columns of indices and numbers, whose products never make the tensor [B, S, E].

        q · e_s  =  Σ_categorical (E q)[index_s]  +  Σ_numeric (W^T q) · [value_s, is missing_s]

    so that dots are picked from `query E^T`, and sums are of weights by value, [B, V], times E.

    Args:
        encoder: of the columns.
        columns: int [B, S] or float [B, S] (NaN = missing), in the order of its fields.
    """

    def __init__(self, encoder: EventEncoder, columns: Sequence[Tensor]) -> None:
        self._encoder = encoder
        self._columns = columns

    def embedded(self) -> Tensor:
        """Each event, [B, S, E]."""
        embedded: Tensor = self._encoder(self._columns)
        return embedded

    def dots(self, query_RE: Tensor) -> Tensor:
        """`query_b · events_s`, [B, S]; 0 at padding."""
        blocks = query_RE.split(self._encoder.widths, dim=-1)
        parts = [bags.dots(block) * real_BS for (bags, real_BS), block in zip(self._bags, blocks, strict=False)]
        if isinstance(self._encoder.numeric, StraightNumbers):
            factors = (blocks[-1] @ self._encoder.numeric.weight).unsqueeze(-1).unbind(dim=1)
            parts += [factor_B1 * number_BS for factor_B1, number_BS in zip(factors, self._numbers, strict=True)]
        return reduce(torch.add, parts)

    def sums(self, weights_RS: Tensor) -> Tensor:
        """`Σ_s weights_bs events_s`, [B, E]."""
        parts = [bags.sums(weights_RS * real_BS) for bags, real_BS in self._bags]
        if isinstance(self._encoder.numeric, StraightNumbers):
            sums = [(weights_RS * number_BS).sum(dim=1) for number_BS in self._numbers]
            parts.append(torch.stack(sums, dim=-1) @ self._encoder.numeric.weight.T)
        return torch.cat(parts, dim=-1)

    @cached_property
    def _bags(self) -> list[tuple[RowBags, Tensor]]:
        """Of each categorical column its rows, and 1 where an index is not padding, [B, S]."""
        indices = [
            column
            for field, column in zip(self._encoder.fields, self._columns, strict=True)
            if field.kind == "categorical"
        ]
        return [
            (RowBags(*table.gather(index_BS)), (index_BS != PADDING).to(table.weight.dtype))
            for table, index_BS in zip(self._encoder.tables, indices, strict=True)
            if isinstance(table, RowTable)
        ]

    @cached_property
    def _numbers(self) -> list[Tensor]:
        """Values, then whether they are missing, [B, S] each: what the encoder's matrix of numbers multiplies."""
        columns = zip(self._encoder.fields, self._columns, strict=True)
        values = [column for field, column in columns if field.kind == "numeric"]
        return list(with_missing_flags(torch.stack(values, dim=-1)).unbind(dim=-1))
