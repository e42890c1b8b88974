"""Adaptive sparse target attention: what in a user's history speaks for this target.

Shapes: B rows, S history positions, D item width, E width of the event embeddings, F = D + E,
K attention width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ctr.row_bags import RowBags


class SparseTargetAttention(nn.Module):
    """Attends from a target item to a history, with ReLU in place of softmax: what is irrelevant weighs 0.

        y_s = [x_s ; events_s],  a_s = ReLU(m_s (W_q x_t)·(W_k y_s) / sqrt(K)),  o = W_o Σ_s a_s W_v y_s + x_t

    (Quadratic Interest Network, arXiv 2504.17699.) No history position is ever projected, since

        (W_q x_t)·(W_k y_s) = (W_k^T W_q x_t)·y_s     and     W_o Σ a_s W_v y_s = W_o W_v (Σ a_s y_s)

    which costs 0.34 M multiply-adds a row at the paper's sizes where the literal form costs 38.4 M.
    An empty or fully padded history gives `o = x_t` exactly.

    Args:
        item_dim: width D of an item.
        event_dim: width E of what a history event adds to its item (its feedback, say); 0 for nothing.
        attention_dim: width K. More than D + E adds parameters but no expressive power.

    Example:
        >>> attention = SparseTargetAttention(item_dim=8, event_dim=0, attention_dim=16)
        >>> items_UD, history_BS = torch.randn(9, 8), torch.randint(0, 9, (4, 20))
        >>> attention(torch.randn(4, 8), RowBags(items_UD, history_BS), None, torch.ones(4, 20)).shape
        torch.Size([4, 8])
    """

    def __init__(self, item_dim: int, event_dim: int, attention_dim: int) -> None:
        super().__init__()
        history_dim = item_dim + event_dim
        self.query = nn.Linear(item_dim, attention_dim, bias=False)
        self.key = nn.Linear(history_dim, attention_dim, bias=False)
        self.value = nn.Linear(history_dim, attention_dim, bias=False)
        self.output = nn.Linear(attention_dim, item_dim, bias=False)
        # Start from similarity: with W_k = W_q on the item's columns, alike items score high from the first step.
        with torch.no_grad():
            self.key.weight[:, :item_dim] = self.query.weight

    def score_matrix(self) -> Tensor:
        """`W_q^T W_k / sqrt(K)`, [D, F]: the score of target x and event y is `x^T M y`."""
        return self.query.weight.T @ self.key.weight / math.sqrt(self.query.out_features)

    def value_matrix(self) -> Tensor:
        """`W_v^T W_o^T`, [F, D]: what an event adds to the interest, as `y^T M`."""
        return self.value.weight.T @ self.output.weight.T

    def forward(self, target_BD: Tensor, history: RowBags, events_BSE: Tensor | None, mask_BS: Tensor) -> Tensor:
        """The interest o, [B, D].

        Args:
            target_BD: target items.
            history: items of the history, [B, S] of them, of width D.
            events_BSE: embedded event columns; None if and only if `event_dim` is 0.
            mask_BS: 1 at an event, 0 at padding, which then contributes nothing whatever it holds.
        """
        queries_BF = target_BD @ self.score_matrix()
        # Items and events apart: an event's item is never copied to stand beside its event columns.
        scores_BS = history.dots(queries_BF[:, : history.width])
        if events_BSE is not None:
            scores_BS = scores_BS + (events_BSE @ queries_BF[:, history.width :].unsqueeze(-1)).squeeze(-1)
        weights_BS = torch.relu(mask_BS * scores_BS)
        pooled_BF = history.sums(weights_BS)
        if events_BSE is not None:
            pooled_BF = torch.cat([pooled_BF, (weights_BS.unsqueeze(1) @ events_BSE).squeeze(1)], dim=-1)
        return pooled_BF @ self.value_matrix() + target_BD
