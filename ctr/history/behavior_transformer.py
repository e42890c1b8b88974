"""A Transformer over history and target, the architecture of the WWW 2025 challenge's winner, with padding masked.

Shapes: R rows, S history positions, T = S + 1 with the target, F = D + E width of an event, K attention width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctr.history.target_history import TargetHistory
from features.errors import ConfigError

HEADS, BLOCKS = 2, 1
MASKED = -1e9  # finite: the softmax of -inf alone is NaN


class TargetTransformer(nn.Module):
    """Self-attention over [events ; target], positions counted back from the newest event.

        z = [W_y y_s + E_position ; W_x x_t];  1 block of  z <- LN(z + Attention(z)),  z <- LN(z + FF(z))
        o = [z_target ; max z]

    (Chen et al. 2019, "Behavior Sequence Transformer", arXiv 1905.06874; the winner of the WWW 2025 challenge
    concatenates the last output and the maximum over all.) Padding is masked in attention and in the maximum; with an
    empty history the target attends to itself alone.

    Args:
        item_dim: D.
        event_dim: E; 0 for none.
        attention_dim: K, a multiple of 2.
        max_len: most positions S.
        dropout: of attention and feed-forward outputs.

    Raises:
        ConfigError: an attention_dim that the heads cannot share.
    """

    def __init__(self, item_dim: int, event_dim: int, attention_dim: int, max_len: int, dropout: float) -> None:
        super().__init__()
        if attention_dim % HEADS:
            raise ConfigError(
                f"Set model.attention_dim to a multiple of {HEADS}: the transformer shares it among {HEADS} heads. "
                f"Got {attention_dim}."
            )
        self.width = 2 * attention_dim
        self.of_event = nn.Linear(item_dim + event_dim, attention_dim)
        self.of_target = nn.Linear(item_dim, attention_dim)
        self.position = nn.Parameter(0.02 * torch.randn(max_len + 1, attention_dim))
        self.blocks = nn.ModuleList(_Block(attention_dim, dropout) for _ in range(BLOCKS))

    def forward(self, history: TargetHistory) -> Tensor:
        """The target's output and the maximum over all, [R, 2 K]."""
        events = [history.items()] if history.events is None else [history.items(), history.events.embedded()]
        z_HSK = self.of_event(torch.cat(events, dim=-1))
        # Looked up, not sliced: a slice would bound the length of the exported graph's history.
        back_S = torch.arange(z_HSK.shape[1], device=z_HSK.device).flip(0).clamp(max=len(self.position) - 1)
        z_HSK = z_HSK + F.embedding(back_S, self.position)
        target_R1K = self.of_target(history.target_RD).unsqueeze(1)
        rows = target_R1K.shape[0]
        z_RTK = torch.cat([z_HSK.expand(rows, -1, -1), target_R1K], dim=1)
        mask_RT = F.pad(history.mask.expand(rows, -1), (0, 1), value=1.0)
        for block in self.blocks:
            z_RTK = block(z_RTK, mask_RT)
        greatest_RK = torch.where(mask_RT.unsqueeze(-1) > 0, z_RTK, MASKED).amax(dim=1)
        return torch.cat([z_RTK[:, -1], greatest_RK], dim=-1)


class _Block(nn.Module):
    """Self-attention and a feed-forward network of twice the width, each with residual and layer norm."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.projections = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.feed_forward = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.dropout = dropout

    def forward(self, z_RTK: Tensor, mask_RT: Tensor) -> Tensor:
        rows, positions, width = z_RTK.shape
        parts = self.projections(z_RTK).view(rows, positions, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4)
        query, key, value = parts[0], parts[1], parts[2]
        scores = query @ key.transpose(-2, -1) / (width // HEADS) ** 0.5
        weights = torch.softmax(torch.where(mask_RT[:, None, None, :] > 0, scores, MASKED), dim=-1)
        read = self.output((weights @ value).transpose(1, 2).reshape(rows, positions, width))
        z_RTK = self.norms[0](z_RTK + F.dropout(read, self.dropout, self.training))
        return self.norms[1](z_RTK + F.dropout(self.feed_forward(z_RTK), self.dropout, self.training))
