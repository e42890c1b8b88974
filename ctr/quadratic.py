"""The quadratic network: each layer multiplies its input with linear functions of itself.

Shapes: B rows, X tower width, R linear rows of a layer.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

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
    """

    def __init__(self, width: int, rows: int, dropout: float) -> None:
        super().__init__()
        self.rows = nn.Linear(width, rows * width)
        self.norm = nn.BatchNorm1d(width)
        self.activation = nn.PReLU()
        self.dropout = nn.Dropout(dropout)

    def merged_rows(self) -> tuple[Tensor, Tensor]:
        """`Σ_r W_r` [X, X] and `Σ_r b_r` [X]."""
        width = self.rows.in_features
        return self.rows.weight.view(-1, width, width).sum(0), self.rows.bias.view(-1, width).sum(0)

    def forward(self, z_BX: Tensor) -> Tensor:
        """[B, X] to [B, X]."""
        if self.training and self.dropout.p > 0:
            linear_BX = self.dropout(self.rows(z_BX)).view(len(z_BX), -1, z_BX.shape[1]).sum(1)
        else:
            linear_BX = F.linear(z_BX, *self.merged_rows())
        return z_BX + self.dropout(self.activation(self.norm(z_BX * linear_BX)))


class QuadraticNetwork(nn.Module):
    """L quadratic layers and a linear logit `w·z + b`: crosses of up to order 2^L.

    Args:
        width: X, of the input.
        layers: L.
        rows: R of each layer.
        dropout: of each layer.

    Example:
        >>> QuadraticNetwork(width=8, layers=2, rows=2, dropout=0.1)(torch.randn(4, 8)).shape
        torch.Size([4])
    """

    def __init__(self, width: int, layers: int, rows: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(QuadraticLayer(width, rows, dropout) for _ in range(layers))
        self.logit = nn.Linear(width, 1)

    def forward(self, z_BX: Tensor) -> Tensor:
        """[B, X] to logits [B].

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
        return self.logit(z_BX).squeeze(-1)
