"""Match features: the similarity of a target and a user's history as a few numbers, without parameters.

Shapes: R rows, S positions, K similarity spaces.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctr.history.target_history import TargetHistory

NEAREST = 3
# Broken vectors give cosines hundreds of standard deviations away from those of training, which would outweigh all
# other inputs of the tower. In training hardly any value reaches this bound.
MOST_DEVIATIONS = 8.0


class MatchFeatures(nn.Module):
    """For each similarity space: the highest cosine, the mean of the 3 highest, the mean of all; and log(1 + events).

    Where there are fewer than 3 events, the others count as cosine 0. All are brought to one scale by batch norm, since
    the tower multiplies them.

    Args:
        spaces: K.
    """

    def __init__(self, spaces: int) -> None:
        super().__init__()
        self.width = 3 * spaces + 1
        self.norm = nn.BatchNorm1d(self.width)

    def forward(self, history: TargetHistory) -> Tensor:
        """Normalised features, [R, width], at most 8 standard deviations from the mean."""
        similarity_KRS = history.similarities
        events_H1 = history.mask.sum(dim=1, keepdim=True).to(similarity_KRS.dtype)
        masked_KRS = similarity_KRS * history.mask.to(similarity_KRS.dtype)
        # Padded with zeros, so that there are always three.
        nearest_KR3 = F.pad(masked_KRS, (0, NEAREST)).topk(NEAREST, dim=-1).values
        share_H1 = 1 / events_H1.clamp(min=1)
        blocks = [nearest_KR3[..., 0].T, nearest_KR3.mean(dim=-1).T, masked_KRS.sum(dim=-1).T * share_H1]
        length_R1 = torch.log1p(events_H1).expand(masked_KRS.shape[1], 1)
        normed: Tensor = self.norm(torch.cat([*blocks, length_R1], dim=-1))
        return normed.clamp(-MOST_DEVIATIONS, MOST_DEVIATIONS)
