"""FinalMLP: two gated perceptrons whose outputs meet in a bilinear form.

Shapes: B rows, X width, G groups of the bilinear form.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ctr.towers.logits import exact_logits
from ctr.towers.mlp import perceptron
from features.errors import ConfigError

GROUPS = 2


class TwoStreams(nn.Module):
    """`z_i = 2 sigmoid(g_i(z)) ⊙ z`, `o_i = MLP_i(z_i)`, `logit = w_1·o_1 + w_2·o_2 + Σ_g o_1^g W_g o_2^g + b`.

    (FinalMLP, arXiv 2304.00902: feature gating for two different views of the input, then grouped bilinear fusion.)

    Args:
        width: X.
        hidden: units of each stream's layers; the last is even.
        dropout: in both streams.
        heads: H, logits a row; each has a fusion of its own.

    Raises:
        ConfigError: the last of `hidden` does not fall into groups.
    """

    def __init__(self, width: int, hidden: Sequence[int], dropout: float, heads: int = 1) -> None:
        super().__init__()
        if hidden[-1] % GROUPS:
            raise ConfigError(
                f"Set the last of model.hidden to a multiple of {GROUPS}: the fusion of two streams cuts it into "
                f"{GROUPS} groups. Got {hidden[-1]}."
            )
        self.norm = nn.BatchNorm1d(width)
        self.gates = nn.ModuleList(
            nn.Sequential(nn.Linear(width, hidden[-1]), nn.ReLU(), nn.Linear(hidden[-1], width)) for _ in range(2)
        )
        self.streams = nn.ModuleList(perceptron(width, hidden, dropout) for _ in range(2))
        self.linear = nn.Linear(2 * hidden[-1], heads)
        part = hidden[-1] // GROUPS
        self.bilinear = nn.Parameter(torch.randn(GROUPS, heads, part, part) / part)

    def forward(self, z_BX: Tensor) -> Tensor:
        """[B, X] to logits [B, H]."""
        z_BX = self.norm(z_BX)
        pairs = zip(self.gates, self.streams, strict=True)
        first_BU, second_BU = (stream(2 * torch.sigmoid(gate(z_BX)) * z_BX) for gate, stream in pairs)
        groups = zip(first_BU.chunk(GROUPS, dim=-1), second_BU.chunk(GROUPS, dim=-1), self.bilinear, strict=True)
        fused_HB = torch.stack([(left @ weight * right).to(z_BX.dtype).sum(dim=-1) for left, right, weight in groups])
        linear_BH = exact_logits(self.linear, torch.cat([first_BU, second_BU], dim=-1))
        return linear_BH + fused_HB.sum(dim=0).T
