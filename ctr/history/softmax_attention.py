"""Softmax target attention: the usual one, for comparison with the sparse one.

Shapes: R rows, S history positions, D item width, E width of the event embeddings, F = D + E, K attention width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ctr.history.target_history import Past

NOTHING = -1e9  # finite: the softmax of -inf alone is NaN


class SoftmaxTargetAttention(nn.Module):
    """`o = W_o Σ_s softmax_s((W_q x_t)·(W_k y_s) / sqrt(K)) W_v y_s + x_t`, with a place for "nothing" of score 0.

    (Vaswani et al. 2017, with the zero of "attention is off by one".) Weights sum to less than 1 where nothing is
    relevant; an empty history gives `o = x_t`.

    Args:
        item_dim: D.
        event_dim: E; 0 for none.
        attention_dim: K.
    """

    def __init__(self, item_dim: int, event_dim: int, attention_dim: int) -> None:
        super().__init__()
        self.width = item_dim
        self.event_dim = event_dim
        self.query = nn.Linear(item_dim, attention_dim, bias=False)
        self.key = nn.Linear(item_dim + event_dim, attention_dim, bias=False)
        self.value = nn.Linear(item_dim + event_dim, attention_dim, bias=False)
        self.output = nn.Linear(attention_dim, item_dim, bias=False)

    def forward(self, past: Past) -> Tensor:
        """The interest o, [R, D]."""
        weights_RS = self.weights(past)
        pooled_RF = past.sums(weights_RS)
        if self.event_dim:
            pooled_RF = torch.cat([pooled_RF, past.event_sums(weights_RS)], dim=-1)
        return self.output(self.value(pooled_RF)) + past.target_RD

    def weights(self, past: Past) -> Tensor:
        """The attention, [R, S]."""
        queries_RF = self.query(past.target_RD) @ self.key.weight / math.sqrt(self.query.out_features)
        scores_RS = past.dots(queries_RF[:, : self.width])
        if self.event_dim:
            scores_RS = scores_RS + past.event_dots(queries_RF[:, self.width :])
        scores_RS = torch.where(past.mask > 0, scores_RS, NOTHING)
        nothing_R1 = torch.zeros_like(past.target_RD[:, :1]).to(scores_RS.dtype)
        weights_RS = torch.softmax(torch.cat([scores_RS, nothing_R1], dim=1), dim=1)[:, :-1]
        return weights_RS * past.mask
