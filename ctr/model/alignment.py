"""Two views of a user: what the past says in content, and what it says in item ids; training holds them together.

Shapes: B rows, E embedding width, V width of all projected vectors.
"""

from __future__ import annotations

from torch import Tensor, nn

from ctr.history.target_history import Past
from ctr.model.encoders import ItemEncoder


class UserAlignment(nn.Module):
    """Means over the past, of id embeddings and of projected vectors, the latter brought to the former's width.

        i = mean_s E_id[s],    c = A mean_s [P_1 v_1 ; P_2 v_2 ; …]

    for `ctr.training.losses.alignment_loss`. Of use in training alone: it is no part of the graph.

    Args:
        items: the item encoder, which has vectors.
    """

    def __init__(self, items: ItemEncoder) -> None:
        super().__init__()
        self.ids = items.widths[0]
        self.first_vector = items.first_vector
        self.content = nn.Linear(items.width - self.first_vector, self.ids, bias=False)

    def forward(self, past: Past) -> tuple[Tensor, Tensor]:
        """Content [B, E] and ids [B, E]; zeros for an empty past."""
        share_RS = past.mask / past.mask.sum(dim=1, keepdim=True).clamp(min=1)
        mean_RD = past.sums(share_RS)
        return self.content(mean_RD[:, self.first_vector :]), mean_RD[:, : self.ids]
