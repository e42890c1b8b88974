"""DIN's attention: a small network weights each past item by the target.

Shapes: R rows, H histories (R, or 1 in a request), S positions, F = D + E width of an event, U hidden units.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctr.history.target_history import TargetHistory

UNITS = 64


class DinAttention(nn.Module):
    """`a_s = m_s w·PReLU(W [x_t ; y_s ; x_t - y_s ; x_t ⊙ y_s] + b)`, `o = Σ_s a_s y_s`; not normalised.

    (Deep Interest Network, arXiv 1706.06978, with PReLU for Dice.) W is kept as its parts. That of the product is
    applied to the target, `W_4 (x ⊙ y) = (W_4 diag x) y`, so that one product with the items of the history does both.

    Args:
        item_dim: D.
        event_dim: E, width of the embedded event beside an item; 0 for none.
    """

    def __init__(self, item_dim: int, event_dim: int) -> None:
        super().__init__()
        self.width = item_dim + event_dim
        # W [x ; y ; x - y ; ...] = (W_1 + W_3) x + (W_2 - W_3) y + ...: two matrices are as general as three.
        self.of_target = nn.Linear(item_dim, UNITS)
        self.of_event = nn.Linear(item_dim + event_dim, UNITS, bias=False)
        self.of_product = nn.Linear(item_dim, UNITS, bias=False)
        self.activation = nn.PReLU()
        self.score = nn.Linear(UNITS, 1)

    def forward(self, history: TargetHistory) -> Tensor:
        """The weighted sum of items and events, [R, D + E], in the precision of the items."""
        weights_RS = self.weights(history)
        pooled = [history.sums(weights_RS)]
        if history.events is not None:
            pooled.append(history.event_sums(weights_RS))
        return torch.cat(pooled, dim=-1)

    def weights(self, history: TargetHistory) -> Tensor:
        """The attention, [R, S]."""
        items_HSD, target_RD = history.items(), history.target_RD
        item_dim = target_RD.shape[-1]
        # Slices, not a split: that of a constant stays in the exported graph.
        of_item_UD, of_columns_UE = self.of_event.weight[:, :item_dim], self.of_event.weight[:, item_dim:]
        of_item_RDU = of_item_UD.T + target_RD.unsqueeze(-1) * self.of_product.weight.T
        hidden_RSU = self.of_target(target_RD).unsqueeze(1) + items_HSD @ of_item_RDU
        if history.events is not None:
            hidden_RSU = hidden_RSU + F.linear(history.events.embedded(), of_columns_UE)
        return self.score(self.activation(hidden_RSU)).squeeze(-1) * history.mask
