"""Logistic regression: every field by itself, nothing crossed."""

from __future__ import annotations

from torch import Tensor, nn


class LinearTower(nn.Module):
    """`logit = w·z + b`. On embedded fields it is a weight for each value of each field, as w·E[value].

    Args:
        width: X.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.logit = nn.Linear(width, 1)

    def forward(self, z_BX: Tensor) -> Tensor:
        """[B, X] to logits [B]."""
        return self.logit(z_BX).squeeze(-1)
