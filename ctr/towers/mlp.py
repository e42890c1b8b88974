"""A multilayer perceptron: the tower of DNN and DIN, and a part of other towers."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ctr.towers.logits import exact_logits


def perceptron(width: int, hidden: Sequence[int], dropout: float) -> nn.Sequential:
    """Layers of [Linear, BatchNorm, ReLU, Dropout], [B, width] to [B, hidden[-1]]."""
    layers: list[nn.Module] = []
    for units in hidden:
        layers += [nn.Linear(width, units), nn.BatchNorm1d(units), nn.ReLU(), nn.Dropout(dropout)]
        width = units
    return nn.Sequential(*layers)


class MlpTower(nn.Module):
    """`logit = w·MLP(z) + b`.

    Args:
        width: X.
        hidden: units of each layer.
        dropout: after each layer.
        heads: H, logits a row.
    """

    def __init__(self, width: int, hidden: Sequence[int], dropout: float, heads: int = 1) -> None:
        super().__init__()
        self.layers = perceptron(width, hidden, dropout)
        self.logit = nn.Linear(hidden[-1], heads)

    def forward(self, z_BX: Tensor) -> Tensor:
        """[B, X] to logits [B, H]."""
        return exact_logits(self.logit, self.layers(z_BX))
