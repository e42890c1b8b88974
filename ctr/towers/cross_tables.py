"""The wide part: a weight for each pair of a context value and an item value, added to the tower's logit.

Shapes: R rows, F crossed item columns, H heads.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ctr.history.item_similarity import require_exact_as_float
from features.store.schema import Field


class WideCrosses(nn.Module):
    """`logit += Σ_{f, g} T_fg[context_f, item_g]`, over pairs of few enough values.

    (The cross-product transformations of Wide & Deep, arXiv 1606.07792.) The preference of each age group for each
    category is a table of some hundred numbers, which a tower of products learns slowly. All weights start at 0.

    Args:
        context: user and context fields.
        items: item fields, the id first; it is not crossed.
        most_cells: pairs of columns with more pairs of values get no table.
        heads: H, logits a row.

    Raises:
        ConfigError: an item column of more than 2^24 values.
    """

    def __init__(self, context: Sequence[Field], items: Sequence[Field], most_cells: int, heads: int) -> None:
        super().__init__()
        sides = [(c, one) for c, one in enumerate(context) if one.kind == "categorical"]
        crossed = [(i, one) for i, one in enumerate(items) if i and one.kind == "categorical"]
        pairs = [(c, i, f, g) for c, f in sides for i, g in crossed if f.size * g.size <= most_cells]
        for _, _, _, crossed_item in pairs:
            require_exact_as_float(crossed_item, "lower model.cross_cells")
        self.columns = sorted({i for _, i, _, _ in pairs})
        self.pairs = [(c, self.columns.index(i), g.size) for c, i, _, g in pairs]
        self.tables = nn.ModuleList(nn.Embedding(f.size * g.size, heads) for _, _, f, g in pairs)
        for weight in self.tables.parameters():
            nn.init.zeros_(weight)
        self.width = len(self.columns)

    def indices(self, columns: Sequence[Tensor], like: Tensor) -> Tensor:
        """The item columns that are crossed, as floats exact up to 2^24: what the item table holds of them, [R, F]."""
        return torch.stack([columns[i] for i in self.columns], dim=-1).to(like.dtype)

    def forward(self, context: Sequence[Tensor], index_RF: Tensor) -> Tensor:
        """Context columns, [R] or [1] each, and item indices [R, F] to what is added to the logits, [R, H]."""
        item_RF = index_RF.to(torch.int64)
        tables = zip(self.pairs, self.tables, strict=True)
        added = [table(context[c].to(torch.int64) * size + item_RF[:, f]) for (c, f, size), table in tables]
        return torch.stack(added).sum(dim=0)
