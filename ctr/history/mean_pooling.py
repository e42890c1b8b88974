"""Mean pooling: the history of a model without attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ctr.history.target_history import TargetHistory


class MeanPooling(nn.Module):
    """The mean of the past items, and of their event embeddings; zeros for an empty past.

    Args:
        item_dim: D.
        event_dim: E; 0 for none.
    """

    def __init__(self, item_dim: int, event_dim: int) -> None:
        super().__init__()
        self.width = item_dim + event_dim

    def forward(self, history: TargetHistory) -> Tensor:
        """The mean item and event, [R, D + E]; zeros for an empty history."""
        share_HS = history.mask / history.mask.sum(dim=1, keepdim=True).clamp(min=1)
        share_RS = share_HS.expand(history.target_RD.shape[0], -1)
        pooled = [history.sums(share_RS)]
        if history.events is not None:
            pooled.append(history.event_sums(share_RS))
        return torch.cat(pooled, dim=-1)
