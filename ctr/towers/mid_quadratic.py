"""Quadratic layers with the activation inside the row (QNN-alpha): stronger crosses, which no longer fold.

Shapes: B rows, X tower width, R linear rows of a layer.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ctr.towers.logits import exact_logits


class MidQuadraticLayer(nn.Module):
    """`h = Σ_r z ⊙ Drop(PReLU(BN(W_r z + b_r)))`, `z <- z + Drop(h)`.

    (QNN-alpha, arXiv 2505.17999.) Each row bends before it multiplies, so R rows say more than their sum: they cost R
    products in serving, too.

    Args:
        width: X.
        rows: R.
        dropout: of each row, and of the layer's addition.
    """

    def __init__(self, width: int, rows: int, dropout: float) -> None:
        super().__init__()
        self.rows = nn.Linear(width, rows * width)
        self.norm = nn.BatchNorm1d(rows * width)
        self.activation = nn.PReLU()
        self.dropout = dropout

    def forward(self, z_BX: Tensor) -> Tensor:
        """[B, X] to [B, X]."""
        bent_BRX = F.dropout(self.activation(self.norm(self.rows(z_BX))), self.dropout, self.training)
        rows_BX = bent_BRX.view(z_BX.shape[0], -1, z_BX.shape[1]).sum(dim=1)
        return z_BX + F.dropout(z_BX * rows_BX, self.dropout, self.training)


class MidQuadraticNetwork(nn.Module):
    """L such layers and a linear logit.

    Args:
        width: X.
        layers: L.
        rows: R of each layer.
        dropout: of each layer.
        heads: H, logits a row.
    """

    def __init__(self, width: int, layers: int, rows: int, dropout: float, heads: int = 1) -> None:
        super().__init__()
        self.layers = nn.ModuleList(MidQuadraticLayer(width, rows, dropout) for _ in range(layers))
        self.logit = nn.Linear(width, heads)

    def forward(self, z_BX: Tensor) -> Tensor:
        """[B, X] to logits [B, H]."""
        for layer in self.layers:
            z_BX = layer(z_BX)
        return exact_logits(self.logit, z_BX)
