"""Match features: how alike a target and a user's past are, as a few numbers without parameters.

Shapes: R rows, S positions, K similarity spaces.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctr.history.item_similarity import hats
from ctr.history.target_history import Past

NEAREST = 3
# Vectors that went wrong give cosines that training never saw, hundreds of its deviations away: such a number must not
# drown all others. In training hardly any lies beyond.
MOST_DEVIATIONS = 8.0


class MatchFeatures(nn.Module):
    """For each similarity space: the highest cosine, the mean of the 3 highest, the mean of all; and log(1 + events).

    With `bins`, also the histogram of the cosines as shares of the history: SimTier ("Enhancing Taobao Display
    Advertising with Multimodal Representations", arXiv 2407.19467). Where there are fewer events than asked for,
    the others count as cosine 0. All are brought to one scale by batch norm, since the tower multiplies them.

    Args:
        spaces: K.
        bins: knots of the histogram, at least 2; 0 leaves it out.
    """

    def __init__(self, spaces: int, bins: int) -> None:
        super().__init__()
        self.bins = bins
        self.width = spaces * (3 + bins) + 1
        self.norm = nn.BatchNorm1d(self.width)

    def forward(self, past: Past) -> Tensor:
        """[R, width]."""
        similarity_RSK = past.similarities
        mask_RS1 = past.mask.unsqueeze(-1).to(similarity_RSK.dtype)
        events_H1 = past.mask.sum(dim=1, keepdim=True).to(similarity_RSK.dtype)
        masked_RSK = similarity_RSK * mask_RS1
        # Filled up with zeros, so that there are always three.
        nearest_R3K = F.pad(masked_RSK, (0, 0, 0, NEAREST)).topk(NEAREST, dim=1).values
        share_H1 = 1 / events_H1.clamp(min=1)
        blocks = [nearest_R3K[:, 0], nearest_R3K.mean(dim=1), masked_RSK.sum(dim=1) * share_H1]
        if self.bins:
            counts_RKJ = (hats(similarity_RSK, self.bins) * mask_RS1.unsqueeze(-1)).sum(dim=1)
            blocks.append(counts_RKJ.flatten(1) * share_H1)
        length_R1 = torch.log1p(events_H1).expand(masked_RSK.shape[0], 1)
        normed: Tensor = self.norm(torch.cat([*blocks, length_R1], dim=-1))
        return normed.clamp(-MOST_DEVIATIONS, MOST_DEVIATIONS)
