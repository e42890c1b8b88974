"""DCNv2: a cross network beside a multilayer perceptron."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ctr.towers.logits import exact_logits
from ctr.towers.mlp import perceptron


class CrossNetwork(nn.Module):
    """`x_0 = BN(z)`, `x_{l+1} = x_0 ⊙ (W_l x_l + b_l) + x_l`; `logit = w·[x_L ; MLP(x_0)] + b`.

    (DCN V2, arXiv 2008.13535, in its parallel form. Batch norm of the input stands in for large initial embeddings.)

    Args:
        width: X.
        layers: L, cross layers.
        hidden: units of the perceptron's layers.
        dropout: in the perceptron.
        heads: H, logits a row.
    """

    def __init__(self, width: int, layers: int, hidden: Sequence[int], dropout: float, heads: int = 1) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width)
        self.cross = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.deep = perceptron(width, hidden, dropout)
        self.logit = nn.Linear(width + hidden[-1], heads)

    def forward(self, z_BX: Tensor) -> Tensor:
        """[B, X] to logits [B, H]."""
        start_BX = self.norm(z_BX)
        x_BX = start_BX
        for layer in self.cross:
            x_BX = start_BX * layer(x_BX) + x_BX
        return exact_logits(self.logit, torch.cat([x_BX, self.deep(start_BX)], dim=-1))
