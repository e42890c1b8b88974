"""Numbers to vectors: straight lines, or lines that bend at the quantiles of the training values.

Shapes: `...` a leading shape of any rank, R its size, N columns, K pieces of a column, E width of one column.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from features.store.schema import Field

STEEPEST = 1e30  # edges may lie closer than single precision can divide by


class StraightNumbers(nn.Module):
    """All columns to one block: `W [values, is missing]`, linear in each value.

    Args:
        numbers: N.
        width: of the block.
    """

    def __init__(self, numbers: int, width: int) -> None:
        super().__init__()
        linear = nn.Linear(2 * numbers, width, bias=False)
        self.weight = linear.weight
        self.widths = (width,)

    def forward(self, value: Tensor) -> Tensor:
        """Float [..., N] (NaN = missing) to [..., width]."""
        return with_missing_flags(value) @ self.weight.T


class PiecewiseNumbers(nn.Module):
    """Each column to a block of its own, which bends at the column's edges (Gorishniy et al. 2022, arXiv 2203.05556).

        piece_k(x) = clamp((x - edge_k) / (edge_{k+1} - edge_k), 0, 1);   block = W [piece_1 … piece_K, is missing]

    Below the first edge and above the last the block stays as it is at the edge. A column without two edges, which had
    one value in training or none, says only whether it is missing.

    Args:
        fields: the numeric columns, with their edges.
        width: E.
    """

    start: Tensor
    slope: Tensor

    def __init__(self, fields: Sequence[Field], width: int) -> None:
        super().__init__()
        most = max(0, *(len(field.edges) - 1 for field in fields))
        start_NK, slope_NK = torch.zeros(2, len(fields), most)
        for row, field in enumerate(fields):
            edges = torch.tensor(field.edges, dtype=torch.float64)
            pieces = max(len(edges) - 1, 0)
            start_NK[row, :pieces] = edges[:-1].float()
            slope_NK[row, :pieces] = (1 / (edges[1:] - edges[:-1])).clamp(max=STEEPEST).float()
        self.register_buffer("start", start_NK, persistent=False)
        self.register_buffer("slope", slope_NK, persistent=False)
        self.weight = nn.Parameter(torch.empty(len(fields), most + 1, width))
        bound = 1 / math.sqrt(self.weight.shape[1])
        nn.init.uniform_(self.weight, -bound, bound)
        self.widths = (width,) * len(fields)

    def forward(self, value: Tensor) -> Tensor:
        """Float [..., N] (NaN = missing) to [..., N · E]."""
        value_RN1 = value.flatten(0, -2).unsqueeze(-1)
        missing_RN1 = torch.isnan(value_RN1)
        known_RN1 = torch.where(missing_RN1, torch.zeros_like(value_RN1), value_RN1)
        piece_RNK = ((known_RN1 - self.start) * self.slope).clamp(0, 1) * ~missing_RN1
        said_RNK = torch.cat([piece_RNK, missing_RN1.to(value.dtype)], dim=-1)
        block_NRE = said_RNK.transpose(0, 1) @ self.weight
        return block_NRE.transpose(0, 1).reshape(*value.shape[:-1], sum(self.widths))


def with_missing_flags(values: Tensor) -> Tensor:
    """Numbers [..., N] to [..., 2 N]: zero where NaN; then 1 where NaN, 0 elsewhere."""
    missing = torch.isnan(values)
    filled = torch.where(missing, torch.zeros_like(values), values)
    return torch.cat([filled, missing.to(values.dtype)], dim=-1)
