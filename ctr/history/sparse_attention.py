"""Adaptive sparse target attention: what in a user's history speaks for this target.

Shapes: R rows, S history positions, D item width, E width of the event embeddings, F = D + E, K attention width,
G heads, J knots of a similarity bias.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ctr.history.item_similarity import hats
from ctr.history.target_history import Past


class SparseTargetAttention(nn.Module):
    """Attends from a target item to a history, with ReLU in place of softmax: what is irrelevant weighs 0.

        y_s = [x_s ; events_s],  a_s = ReLU(m_s (W_q x_t)·(W_k y_s) / sqrt(K)),  o = W_o Σ_s a_s W_v y_s + x_t

    (Quadratic Interest Network, arXiv 2504.17699.) No history position is ever projected, since

        (W_q x_t)·(W_k y_s) = (W_k^T W_q x_t)·y_s     and     W_o Σ a_s W_v y_s = W_o W_v (Σ a_s y_s)

    which costs 0.34 M multiply-adds a row at the paper's sizes where the literal form costs 38.4 M.
    An empty or fully padded history gives `o = x_t` exactly. With several heads the columns of W_q, W_k and W_v are
    divided among them, each with weights a_s of its own.

    Args:
        item_dim: width D of an item.
        event_dim: width E of what a history event adds to its item (its feedback, say); 0 for nothing.
        attention_dim: width K. More than D + E adds parameters but no expressive power.
        heads: G, a divisor of K.
        bias_spaces: similarity spaces whose cosine moves the score, by a learned function of it that is linear
            between `bias_knots` knots (DMF and MUSE let buckets of it do so); 0 for none.
        bias_knots: J.
    """

    def __init__(
        self,
        item_dim: int,
        event_dim: int,
        attention_dim: int,
        heads: int = 1,
        bias_spaces: int = 0,
        bias_knots: int = 0,
    ) -> None:
        super().__init__()
        history_dim = item_dim + event_dim
        self.width = item_dim
        self.heads = heads
        self.event_dim = event_dim
        self.query = nn.Linear(item_dim, attention_dim, bias=False)
        self.key = nn.Linear(history_dim, attention_dim, bias=False)
        self.value = nn.Linear(history_dim, attention_dim, bias=False)
        self.output = nn.Linear(attention_dim, item_dim, bias=False)
        self.bias = nn.Parameter(torch.zeros(bias_spaces, bias_knots)) if bias_spaces and bias_knots else None
        # Start from similarity: with W_k = W_q on the item's columns, alike items score high from the first step.
        with torch.no_grad():
            self.key.weight[:, :item_dim] = self.query.weight

    def score_matrices(self) -> list[Tensor]:
        """`W_q^T W_k / sqrt(K / G)` of each head, [D, F]: the score of target x and event y is `x^T M y`."""
        scale = math.sqrt(self.query.out_features // self.heads)
        pairs = zip(self.query.weight.chunk(self.heads), self.key.weight.chunk(self.heads), strict=True)
        return [query.T @ key / scale for query, key in pairs]

    def value_matrices(self) -> list[Tensor]:
        """`W_v^T W_o^T` of each head, [F, D]: what an event adds to the interest, as `y^T M`."""
        pairs = zip(self.value.weight.chunk(self.heads), self.output.weight.chunk(self.heads, dim=1), strict=True)
        return [value.T @ output.T for value, output in pairs]

    def forward(self, past: Past) -> Tensor:
        """The interest o, [R, D]."""
        interest_RD = past.target_RD
        for score_DF, value_FD in zip(self.score_matrices(), self.value_matrices(), strict=True):
            weights_RS = self._weights(past, past.target_RD @ score_DF)
            pooled_RF = past.sums(weights_RS)
            if self.event_dim:
                pooled_RF = torch.cat([pooled_RF, past.event_sums(weights_RS)], dim=-1)
            interest_RD = pooled_RF @ value_FD + interest_RD
        return interest_RD

    def weights(self, past: Past) -> Tensor:
        """The attention a, averaged over heads, [R, S]: what an explanation shows."""
        by_head = [self._weights(past, past.target_RD @ score_DF) for score_DF in self.score_matrices()]
        return torch.stack(by_head).mean(dim=0)

    def _weights(self, past: Past, queries_RF: Tensor) -> Tensor:
        # Items and events apart: an event's item is never copied to stand beside its event columns.
        scores_RS = past.dots(queries_RF[:, : self.width])
        if self.event_dim:
            scores_RS = scores_RS + past.event_dots(queries_RF[:, self.width :])
        if self.bias is not None:
            scores_RS = scores_RS + (hats(past.similarities, self.bias.shape[1]) * self.bias).sum(dim=(-2, -1))
        return torch.relu(past.mask * scores_RS)
