"""Mean pooling: what a model without attention knows of the past."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ctr.history.target_history import Past


class MeanPooling(nn.Module):
    """The mean of the past items, and of their event embeddings; zeros for an empty past.

    Args:
        item_dim: D.
        event_dim: E; 0 for none.
    """

    def __init__(self, item_dim: int, event_dim: int) -> None:
        super().__init__()
        self.width = item_dim + event_dim

    def forward(self, past: Past) -> Tensor:
        """[R, D + E]."""
        share_HS = past.mask / past.mask.sum(dim=1, keepdim=True).clamp(min=1)
        share_RS = share_HS.expand(past.target_RD.shape[0], -1)
        pooled = [past.sums(share_RS)]
        if past.events is not None:
            pooled.append(past.event_sums(share_RS))
        return torch.cat(pooled, dim=-1)
