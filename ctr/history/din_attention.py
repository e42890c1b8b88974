"""DIN's attention: a small network scores each past item beside the target.

Shapes: R rows, H histories (R, or 1 in a request), S positions, F = D + E width of an event, U hidden units.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ctr.history.target_history import Past

UNITS = 64


class DinAttention(nn.Module):
    """`a_s = m_s w·PReLU(W [x_t ; y_s ; x_t - y_s ; x_t ⊙ y_s] + b)`, `o = Σ_s a_s y_s`; not normalised.

    (Deep Interest Network, arXiv 1706.06978, with PReLU for Dice.) W is kept as its parts: those of x_t and of y_s are
    applied once an item, and only the product's part once a pair.

    Args:
        item_dim: D.
        event_dim: E, width of the embedded event beside an item; 0 for none.
    """

    def __init__(self, item_dim: int, event_dim: int) -> None:
        super().__init__()
        self.width = item_dim + event_dim
        # W [x ; y ; x - y ; ...] = (W_1 + W_3) x + (W_2 - W_3) y + ...: two matrices say all that three do.
        self.of_target = nn.Linear(item_dim, UNITS)
        self.of_event = nn.Linear(item_dim + event_dim, UNITS, bias=False)
        self.of_product = nn.Linear(item_dim, UNITS, bias=False)
        self.activation = nn.PReLU()
        self.score = nn.Linear(UNITS, 1)

    def forward(self, past: Past) -> Tensor:
        """[R, D + E]."""
        weights_RS = self.weights(past)
        pooled = [past.sums(weights_RS)]
        if past.events is not None:
            pooled.append(past.event_sums(weights_RS))
        return torch.cat(pooled, dim=-1)

    def weights(self, past: Past) -> Tensor:
        """The attention, [R, S]."""
        items_HSD = past.items()
        events = [] if past.events is None else [past.events.embedded()]
        hidden_RSU = self.of_target(past.target_RD).unsqueeze(1) + self.of_event(torch.cat([items_HSD, *events], -1))
        hidden_RSU = hidden_RSU + self.of_product(past.target_RD.unsqueeze(1) * items_HSD)
        return self.score(self.activation(hidden_RSU)).squeeze(-1) * past.mask
