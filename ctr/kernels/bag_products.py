"""Sums and dot products over lists of table rows, in which no listed row is ever copied out of its table.

A history of S items is a list of S rows of the table of distinct items. Gathering it for B rows makes a tensor
[B, S, D], the largest of a step by far, and training reads and writes it half a dozen times. Here each product reads
the table's rows where they lie, which on a CPU is mostly its cache.

Shapes: B rows, S listed rows each, U rows of the table, D their width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ctr.kernels.runtime import in_threads, kernel, prefetch, put, widen

ROWS_AHEAD = 6  # that are asked for before they are read
# A table of at most so many rows is multiplied whole, and numbers are listed in place of rows.
FEW_ROWS = 256


class RowBags:
    """Lists of rows of one table; what attention does with a history, and its gradients.

    On a CPU `dots` and `sums` are products of a sparse matrix with a dense one, forwards and backwards. A table of few
    rows is multiplied whole: `dots` picks from `query table^T` [B, U], `sums` adds weights up by row, [B, U], and
    multiplies these by the table. On a GPU, whose memory is fast and whose popular rows would make long serial sums,
    the rows are gathered, once. Under autocast both are in its precision; sums are in single precision.

    Args:
        table_UD: the table.
        index_BS: rows of it, int32 or int64.

    Example:
        >>> bags = RowBags(torch.eye(3), torch.tensor([[2, 0]]))
        >>> bags.sums(torch.tensor([[10.0, 5.0]]))
        tensor([[ 5.,  0., 10.]])
    """

    def __init__(self, table_UD: Tensor, index_BS: Tensor) -> None:
        self.shape = index_BS.shape
        self.width = table_UD.shape[1]
        device = table_UD.device.type
        if torch.is_autocast_enabled(device):
            table_UD = table_UD.to(torch.get_autocast_dtype(device))
        self._gathered: Tensor | None = None
        if device != "cpu" or not index_BS.numel():
            self._gathered = F.embedding(index_BS, table_UD)
            return
        self._table = table_UD
        self._index_BS = index_BS.long() if len(table_UD) <= FEW_ROWS else None
        if self._index_BS is not None:
            return
        needs_gradient = torch.is_grad_enabled() and table_UD.requires_grad
        self._lists = _Lists.of(index_BS, len(table_UD), needs_gradient)

    def dots(self, query_BD: Tensor) -> Tensor:
        """`query_b · table[index_bs]`, [B, S]."""
        if self._gathered is not None:
            return (self._gathered @ query_BD.unsqueeze(-1)).squeeze(-1)
        if self._index_BS is not None:
            return (query_BD.to(self._table.dtype) @ self._table.T).gather(1, self._index_BS)
        dots: Tensor = _Dots.apply(self._table, query_BD, self._lists)
        return dots.view(self.shape)

    def sums(self, weights_BS: Tensor) -> Tensor:
        """`Σ_s weights_bs table[index_bs]`, [B, D]."""
        if self._gathered is not None:
            return (weights_BS.unsqueeze(1) @ self._gathered).squeeze(1)
        if self._index_BS is not None:
            weights_BS = weights_BS.to(torch.promote_types(weights_BS.dtype, torch.float32))
            by_row_BU = weights_BS.new_zeros(len(weights_BS), len(self._table))
            by_row_BU = by_row_BU.scatter_add(1, self._index_BS, weights_BS)
            return by_row_BU.to(self._table.dtype) @ self._table
        sums: Tensor = _Sums.apply(self._table, weights_BS.flatten(), self._lists)
        return sums


@dataclass(frozen=True)
class _Lists:
    """P positions in B lists; for gradients the same positions ordered by the row they name, and where each begins.

    Of a table with more rows than there are positions, `named_N` are those that are named at all.
    """

    row_P: Tensor
    start_B: Tensor
    list_P: Tensor
    rows: int
    by_row_P: Tensor | None = None
    start_N: Tensor | None = None
    named_N: Tensor | None = None

    @classmethod
    def of(cls, index_BS: Tensor, rows: int, for_gradients: bool) -> _Lists:
        lists, length = index_BS.shape
        row_P = index_BS.flatten()
        start_B = torch.arange(lists, dtype=row_P.dtype) * length
        list_P = torch.arange(lists, dtype=row_P.dtype).repeat_interleave(length)
        if not for_gradients:
            return cls(row_P, start_B, list_P, rows)
        sorted_P, by_row_P = torch.sort(row_P, stable=True)
        if rows > len(row_P):
            named_N, times_N = torch.unique_consecutive(sorted_P, return_counts=True)
            start_N = (times_N.cumsum(0) - times_N).to(row_P.dtype)
            return cls(row_P, start_B, list_P, rows, by_row_P, start_N, named_N.long())
        start_N = torch.searchsorted(sorted_P, torch.arange(rows, dtype=row_P.dtype), out_int32=True)
        return cls(row_P, start_B, list_P, rows, by_row_P, start_N.to(row_P.dtype))

    def sums(self, table_UD: Tensor, weights_P: Tensor) -> Tensor:
        """Of each list, [B, D]."""
        return F.embedding_bag(self.row_P, table_UD, self.start_B, mode="sum", per_sample_weights=weights_P)

    def dots(self, table_UD: Tensor, query_BD: Tensor) -> Tensor:
        """Of each position, [P]."""
        dots_BS = torch.empty(len(query_BD), len(self.row_P) // len(query_BD), dtype=table_UD.dtype)
        zero = np.float64(0) if table_UD.dtype == torch.float64 else np.float32(0)
        in_threads(row_dots, len(query_BD), (table_UD, query_BD, self.row_P, zero, dots_BS))
        return dots_BS.flatten()

    def sums_by_row(self, values_BD: Tensor, weights_P: Tensor) -> Tensor:
        """`Σ weights_p values[list of p]` over the positions p that name a row, [U, D]."""
        assert self.by_row_P is not None and self.start_N is not None
        sums_ND = F.embedding_bag(
            self.list_P[self.by_row_P],
            values_BD,
            self.start_N,
            mode="sum",
            per_sample_weights=weights_P[self.by_row_P],
        )
        if self.named_N is None:
            return sums_ND
        return sums_ND.new_zeros(self.rows, sums_ND.shape[1]).index_copy_(0, self.named_N, sums_ND)


@kernel
def row_dots(table, query, named, zero, dots, start, stop):  # type: ignore[no-untyped-def]
    """`dots_bs = query_b · table[named_bs]` of the lists `start` to `stop`, added up in the precision of `zero`.

    `named` holds the lists one after the other.
    """
    width, length = table.shape[1], dots.shape[1]
    one = np.full(width, zero)
    for b in range(start, stop):
        of_list = dots[b]
        for j in range(width):
            one[j] = widen(query[b, j])
        for s in range(length):
            place = b * length + s
            prefetch(table, named[min(place + ROWS_AHEAD, stop * length - 1)])  # type: ignore[call-arg]
            row = table[named[place]]
            total = zero
            for j in range(width):
                total += one[j] * widen(row[j])
            put(of_list, s, total)


class _Dots(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table_UD: Tensor, query_BD: Tensor, lists: _Lists) -> Tensor:
        query_BD = query_BD.to(table_UD.dtype).contiguous()
        ctx.save_for_backward(table_UD, query_BD)
        ctx.lists = lists
        return lists.dots(table_UD, query_BD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_P: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        table_UD, query_BD = ctx.saved_tensors
        gradient_P = gradient_P.contiguous()
        of_table = ctx.lists.sums_by_row(query_BD, gradient_P) if ctx.needs_input_grad[0] else None
        of_query = ctx.lists.sums(table_UD, gradient_P) if ctx.needs_input_grad[1] else None
        return of_table, of_query, None


class _Sums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table_UD: Tensor, weights_P: Tensor, lists: _Lists) -> Tensor:
        weights_P = weights_P.to(table_UD.dtype).contiguous()
        ctx.save_for_backward(table_UD, weights_P)
        ctx.lists = lists
        return lists.sums(table_UD, weights_P)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_BD: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        table_UD, weights_P = ctx.saved_tensors
        gradient_BD = gradient_BD.contiguous()
        of_table = ctx.lists.sums_by_row(gradient_BD, weights_P) if ctx.needs_input_grad[0] else None
        of_weights = ctx.lists.dots(table_UD, gradient_BD) if ctx.needs_input_grad[1] else None
        return of_table, of_weights, None
