"""DeepFM: a factorization machine over the blocks of the input, beside a multilayer perceptron.

Shapes: B rows, X width, F blocks, E width of a factor.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ctr.towers.logits import exact_logits
from ctr.towers.mlp import perceptron


class FactorizedNetwork(nn.Module):
    """`logit = w·z + Σ_{f<g} V_f z_f · V_g z_g + v·MLP(z) + b`.

    (DeepFM, arXiv 1703.04247.) Blocks are of different widths (an embedding, a projected vector, an interest), so each
    has a projection V_f to factors of one width. Several heads share the pairs.

    Args:
        widths: of the blocks.
        factor_dim: E.
        hidden: units of the perceptron's layers.
        dropout: in the perceptron.
        heads: H, logits a row.
    """

    def __init__(
        self, widths: Sequence[int], factor_dim: int, hidden: Sequence[int], dropout: float, heads: int = 1
    ) -> None:
        super().__init__()
        self.widths = tuple(widths)
        self.factors = nn.ModuleList(nn.Linear(width, factor_dim, bias=False) for width in widths)
        self.norm = nn.BatchNorm1d(sum(widths))
        self.linear = nn.Linear(sum(widths), heads)
        self.deep = perceptron(sum(widths), hidden, dropout)
        self.logit = nn.Linear(hidden[-1], heads, bias=False)

    def forward(self, z_BX: Tensor) -> Tensor:
        """[B, X] to logits [B, H]."""
        z_BX = self.norm(z_BX)
        blocks = zip(self.factors, z_BX.split(self.widths, dim=-1), strict=True)
        # Squares that cancel: not in half precision.
        factors_BFE = torch.stack([factor(block) for factor, block in blocks], dim=1).to(z_BX.dtype)
        # Σ_{f<g} a_f·a_g = (|Σ a_f|² - Σ |a_f|²) / 2
        pairs_B = (factors_BFE.sum(dim=1).square() - factors_BFE.square().sum(dim=1)).sum(dim=-1) / 2
        deep_BH = exact_logits(self.logit, self.deep(z_BX))
        return exact_logits(self.linear, z_BX) + pairs_B.unsqueeze(-1) + deep_BH
