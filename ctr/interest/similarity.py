"""Similarity spaces: in which ways two items can be alike, as unit vectors whose dot product is their cosine.

Shapes: U items, W width of one space, K spaces, `...` any leading shape.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from features.schema import FIRST_VALUE, Schema

# Of tags in larger vocabularies hardly any two items share one, and a space is as wide as its vocabulary.
MOST_TAGS = 64


class SimilaritySpaces(nn.Module):
    """One space for each vector set, and one for each tags column of at most 64 values.

    The cosine of two tag sets is |A ∩ B| / sqrt(|A| |B|). An item that is not in a space (no vector, no tags) is
    zeros there: its cosine with everything is 0.

    Args:
        schema: the fields of the feature set.
    """

    def __init__(self, schema: Schema) -> None:
        super().__init__()
        fields = list(enumerate(schema.item))
        self._tags = [(i, f.size) for i, f in fields if f.kind == "tags" and FIRST_VALUE < f.size <= MOST_TAGS]
        self.names = (*(one.name for one in schema.vectors), *(schema.item[i].name for i, _ in self._tags))
        self.widths = (*(one.width for one in schema.vectors), *(size - FIRST_VALUE for _, size in self._tags))

    def forward(self, columns: Sequence[Tensor], vectors: Sequence[Tensor]) -> list[Tensor]:
        """Item columns and vectors, in schema order, to K unit vectors [U, W] an item."""
        units = [F.normalize(vector, dim=-1) for vector in vectors]
        for place, size in self._tags:
            tags = torch.arange(FIRST_VALUE, size, device=columns[place].device)
            has_UW = (columns[place].unsqueeze(-1) == tags).any(dim=-2)
            units.append(F.normalize(has_UW.to(vectors[0].dtype if vectors else torch.float32), dim=-1))
        return units


def hats(values: Tensor, count: int) -> Tensor:
    """Cosines [...] as weights on `count` evenly spread knots from -1 to 1, [..., count]; they sum to 1.

    A histogram with soft borders (each value lies on the two nearest knots): a hard one would jump at a border, where
    a graph that rounds in another order gives another score.
    """
    knots = torch.linspace(-1, 1, count, device=values.device, dtype=values.dtype)
    spacing = 2 / (count - 1)
    return torch.relu(1 - (values.unsqueeze(-1) - knots).abs() / spacing)
