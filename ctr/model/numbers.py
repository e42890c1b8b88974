"""Numbers to vectors: straight lines, or lines that bend at the quantiles of the training values.

Shapes: `...` a leading shape of any rank, N columns, K pieces of a column, E width of one block.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from features.store.schema import Field

MOST_BLOCKS = 4
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
    """All columns to one sum of curves, which bend at the columns' edges (Gorishniy et al. 2022, arXiv 2203.05556).

        piece_k(x) = clamp((x - edge_k) / (edge_{k+1} - edge_k), 0, 1);   Σ_n W_n [piece_1 … piece_K, is missing]

    Below its first edge and above its last a column says what it says at the edge. A column without two edges, which
    had one value in training or none, says only whether it is missing. The sum has a block for each column, but four at
    most: a log may have sixty counters, and what stands above multiplies all blocks with each other.

    Args:
        fields: the numeric columns, with their edges.
        width: E of a block.
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
        self.widths = (width,) * min(len(fields), MOST_BLOCKS)
        linear = nn.Linear(len(fields) * (most + 1), sum(self.widths), bias=False)
        self.weight = linear.weight

    def forward(self, value: Tensor) -> Tensor:
        """Float [..., N] (NaN = missing) to [..., B · E], B = min(N, 4)."""
        value_N1 = value.unsqueeze(-1)
        missing_N1 = torch.isnan(value_N1)
        known_N1 = torch.where(missing_N1, torch.zeros_like(value_N1), value_N1)
        piece_NK = ((known_N1 - self.start) * self.slope).clamp(0, 1) * ~missing_N1
        said_NK = torch.cat([piece_NK, missing_N1.to(value.dtype)], dim=-1)
        return said_NK.flatten(-2) @ self.weight.T


def with_missing_flags(values: Tensor) -> Tensor:
    """Numbers [..., N] to [..., 2 N]: zero where NaN; then 1 where NaN, 0 elsewhere."""
    missing = torch.isnan(values)
    filled = torch.where(missing, torch.zeros_like(values), values)
    return torch.cat([filled, missing.to(values.dtype)], dim=-1)
