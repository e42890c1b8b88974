"""Logistic regression: a weight for each input, without crosses."""

from __future__ import annotations

from torch import Tensor, nn

from ctr.towers.logits import exact_logits


class LinearTower(nn.Module):
    """`logit = w·z + b`. On embedded fields it is a weight for each value of each field, as w·E[value].

    Args:
        width: X.
        heads: H, logits a row.
    """

    def __init__(self, width: int, heads: int = 1) -> None:
        super().__init__()
        self.logit = nn.Linear(width, heads)

    def forward(self, z_BX: Tensor) -> Tensor:
        """[B, X] to logits [B, H]."""
        return exact_logits(self.logit, z_BX)
