"""The quadratic network: each layer multiplies its input with linear functions of itself.

Shapes: B rows, X tower width, R linear rows of a layer.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctr.kernels.quadratic_autograd import quadratic_step
from ctr.towers.logits import exact_logits
from features.errors import ConfigError


class QuadraticLayer(nn.Module):
    """One layer of second-order feature crosses with a residual.

        h = Σ_r z ⊙ Drop(W_r z + b_r),    z <- z + Drop(PReLU(BN(h)))

    (Quadratic Interest Network, arXiv 2504.17699.) Without dropout noise the R rows are one matrix
    `Σ_r W_r`, so evaluation computes one row whatever R is; with noise all rows are one matrix product.

    Args:
        width: X, of input and output.
        rows: R. With dropout, more rows average more noise; 3 or 4 pay, without dropout 1 does the same.
        dropout: probability of dropping a value of a row, and of the layer's addition.
        merge: train the one matrix `W = Σ_r W_r` in place of the rows: `h = z ⊙ Drop'(W z + b)`, a quarter of the
            work at R = 4. W starts as a sum of R rows does. R rows alike, each with noise of its own, vary like
            one row whose variance p / (1 - p) is divided by R: Drop' has that variance.
    """

    def __init__(self, width: int, rows: int, dropout: float, merge: bool = False) -> None:
        super().__init__()
        self.rows = nn.Linear(width, width if merge else rows * width)
        self.row_dropout = _dropout_of_a_mean(dropout, rows) if merge else dropout
        if merge:
            with torch.no_grad():
                for parameter in self.rows.parameters():
                    parameter.mul_(math.sqrt(rows))
        self.norm = nn.BatchNorm1d(width)
        self.activation = nn.PReLU()
        self.dropout = dropout

    def merged_rows(self) -> tuple[Tensor, Tensor]:
        """`Σ_r W_r` [X, X] and `Σ_r b_r` [X]."""
        width = self.rows.in_features
        return self.rows.weight.view(-1, width, width).sum(0), self.rows.bias.view(-1, width).sum(0)

    def forward(self, z_BX: Tensor) -> Tensor:
        """[B, X] to [B, X]."""
        noisy = self.training and self.row_dropout > 0
        weight, bias = (self.rows.weight, self.rows.bias) if noisy else self.merged_rows()
        if self.training and z_BX.device.type == "cpu":
            return quadratic_step(z_BX, weight, bias, self.norm, self.activation.weight, self.row_dropout, self.dropout)
        linear_BRX = F.dropout(F.linear(z_BX, weight, bias), self.row_dropout, self.training)
        linear_BX = linear_BRX.view(len(z_BX), -1, z_BX.shape[1]).sum(1)
        return z_BX + F.dropout(self.activation(self.norm(z_BX * linear_BX)), self.dropout, self.training)


class QuadraticNetwork(nn.Module):
    """L quadratic layers and a linear logit `w·z + b` for each head: crosses of up to order 2^L.

    Args:
        width: X, of the input.
        layers: L.
        rows: R of each layer.
        dropout: of each layer.
        merge: train each layer's rows as one matrix.
        heads: H, logits a row.

    Example:
        >>> QuadraticNetwork(width=8, layers=2, rows=2, dropout=0.1)(torch.randn(4, 8)).shape
        torch.Size([4, 1])
    """

    def __init__(self, width: int, layers: int, rows: int, dropout: float, merge: bool = False, heads: int = 1) -> None:
        super().__init__()
        self.layers = nn.ModuleList(QuadraticLayer(width, rows, dropout, merge) for _ in range(layers))
        self.logit = nn.Linear(width, heads)

    def forward(self, z_BX: Tensor) -> Tensor:
        """[B, X] to logits [B, H].

        Raises:
            ConfigError: a training batch of one row, of which batch norm cannot take the variance.
        """
        if self.training and len(z_BX) < 2:
            raise ConfigError(
                f"Set train.batch_size to at least 2, and leave no single row as the last batch: batch norm "
                f"needs two rows. Got {len(z_BX)}."
            )
        for layer in self.layers:
            z_BX = layer(z_BX)
        return exact_logits(self.logit, z_BX)


def _dropout_of_a_mean(p: float, rows: int) -> float:
    """The drop probability whose noise has 1/R of the variance of that of `p`."""
    variance = p / (1 - p) / rows
    return variance / (1 + variance)
