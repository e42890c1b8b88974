"""Tabular features: what trees read of a row, without embeddings and without parameters.

Shapes: R rows, H histories (R in a batch, 1 in a request), S history positions, K similarity spaces, F features, I
width of an item's block, V numbers of an item, E numbers of an event, G weightings of one history, N nearest events.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctr.history.item_similarity import SimilaritySpaces, require_exact_as_float
from ctr.history.target_history import TargetHistory
from features.store.schema import FIRST_VALUE, Field, Schema

NEWEST, NEAREST = 10, 5
SHARPNESS = 4.0  # the weight of an event is exp(4 cos)
MOST_VALUES = 32  # of a column that becomes one feature a value
NO_EVENT = -2.0  # below any cosine


class TabularFeatures(nn.Module):
    """The features of a row for trees; a number that is missing is NaN.

    These are context, candidate, item and user columns without ids (numbers; a 0 or 1 for each value of a small
    vocabulary; else an index); and of the past the log of 1 + its length; for each similarity space the highest cosine
    of target and history, the mean of the five highest and the mean of all; for each number of the events (a small
    category is a number for each value) its mean, its mean over the newest 10, and its means weighted by exp(4 cos) in
    each space; and the difference between each number of the item and its mean over the history. A history shorter than
    the longest one counts as filled up by cosines of 0.

    What is computed of the past is computed in double precision and rounded once: a tree has hard borders, and two
    orders of summation would else put one value on both sides of a border.

    Args:
        schema: the fields of the feature set.
        past: whether features of the history are made.

    Raises:
        ConfigError: an item column of more values than single precision tells apart.
    """

    def __init__(self, schema: Schema, past: bool) -> None:
        super().__init__()
        self.past = past
        self.user_fields, self.context_fields, self.candidate_fields = schema.user[1:], schema.context, schema.candidate
        self.item_fields = schema.item[1:]
        for field in self.item_fields:
            if field.kind == "categorical" and not _small(field):
                require_exact_as_float(field, "leave out model.base")
        self.event_fields = schema.event if past else ()
        self.max_len = schema.history_max_len
        # Where the numbers of an item stand among its features, and which flag each of these features has: 0 for none.
        self.numbers: list[int] = []
        self.flags: list[int] = []
        for field in self.item_fields:
            if field.kind == "numeric":
                self.numbers.append(len(self.flags))
                self.flags.append(len(self.numbers))
            else:
                self.flags += [0] * _width(field)
        self.flags = self.flags or [0]
        self.item_width = len(self.flags) + len(self.numbers)
        own = (*self.context_fields, *self.candidate_fields, *self.user_fields)
        self.width = sum(map(_width, own)) + len(self.flags)
        self.spaces = len(SimilaritySpaces(schema).names) if past else 0
        if past:
            said = sum(_width(one) for one in self._said_fields())
            self.width += 1 + 3 * self.spaces + (2 + self.spaces) * said + len(self.numbers)

    def item_block(self, columns: Sequence[Tensor]) -> Tensor:
        """The features of items, 0 for a missing number, then a flag for each number: float32 [..., I], all finite.

        Items without any column have one feature, 0: a graph always reads its item table.

        Args:
            columns: of the items, their id first, in the order of the schema.
        """
        pairs = list(zip(self.item_fields, columns[1:], strict=True))
        values = [_features(field, column) for field, column in pairs if _width(field)]
        flags = [torch.isnan(column).float().unsqueeze(-1) for field, column in pairs if field.kind == "numeric"]
        if not values:
            return torch.zeros_like(columns[0], dtype=torch.float32).unsqueeze(-1)
        return torch.cat([_filled(torch.cat(values, dim=-1)), *flags], dim=-1)

    def item_numbers(self, block: Tensor) -> Tensor:
        """The numbers of items, 0 where missing, double [..., V], of their block [..., I]; some column if none."""
        return _columns(block, self.numbers or [0]).double()

    def forward(
        self,
        user: Sequence[Tensor],
        context: Sequence[Tensor],
        candidate: Sequence[Tensor],
        block_RI: Tensor,
        history: TargetHistory | None,
    ) -> Tensor:
        """Features, float32 [R, F].

        Args:
            user, context: columns in the order of the schema, the user id left out; of R rows, or of one for all.
            candidate: numbers of the targets, [R] each.
            block_RI: of the targets.
            history: in double precision, its items' numbers as items, what it compares without past left out; None
                without past.
        """
        rows = block_RI.shape[0]
        fields = (*self.context_fields, *self.candidate_fields)
        own = [_features(field, column) for field, column in zip(fields, (*context, *candidate), strict=True)]
        users = [_features(field, column) for field, column in zip(self.user_fields, user, strict=True)]
        blocks = [*own, self._item(block_RI), *users]
        if history is not None:
            blocks += [block.float() for block in self._past(block_RI, history)]
        return torch.cat([block.expand(rows, -1) for block in blocks], dim=-1)

    def _item(self, block_RI: Tensor) -> Tensor:
        values_RF = block_RI[:, : len(self.flags)]
        if not self.numbers:
            return values_RF
        flags_RV = block_RI[:, len(self.flags) :]
        flags_RF = _columns(F.pad(flags_RV, (1, 0)), self.flags)
        return torch.where(flags_RF > 0, torch.nan, values_RF)

    def _past(self, block_RI: Tensor, history: TargetHistory) -> list[Tensor]:
        rows, mask_HS = block_RI.shape[0], history.mask
        length_H1 = mask_HS.sum(dim=-1, keepdim=True)
        share_HS = mask_HS / length_H1.clamp(min=1)
        positions = mask_HS.shape[1]
        newest_S = torch.arange(positions, device=mask_HS.device) >= positions - NEWEST
        cosine_RS = list(history.similarities) if self.spaces else []
        weights = [mask_HS, mask_HS * newest_S]
        weights += [mask_HS * torch.exp(SHARPNESS * one_RS) for one_RS in cosine_RS]
        blocks = [torch.log1p(length_H1)]
        for one_RS in cosine_RS:
            nearest_RN = self._nearest(one_RS, mask_HS, length_H1)
            mean_R1 = (one_RS * share_HS).sum(dim=-1, keepdim=True)
            blocks += [nearest_RN[:, :1], nearest_RN.mean(dim=-1, keepdim=True), mean_R1]
        if self._said_fields():
            weights_GRS = torch.stack([weight.expand(rows, -1) for weight in weights])
            mass_RG = weights_GRS.sum(dim=-1).T.clamp(min=1e-9)
            blocks.append((history.pooled(weights_GRS, self._said(history)) / mass_RG.unsqueeze(-1)).flatten(1))
        if self.numbers:
            number_RV = _columns(self._item(block_RI), self.numbers).double()
            blocks.append(number_RV - history.sums(share_HS.expand(rows, -1)))
        return blocks

    def _nearest(self, cosine_RS: Tensor, mask_HS: Tensor, length_H1: Tensor) -> Tensor:
        """The highest cosines, [R, up to 5]; a history that is not full has cosines of 0, too."""
        kept = min(NEAREST, self.max_len)
        empty_H1, place_N = self.max_len - length_H1, torch.arange(kept, device=mask_HS.device)
        filled_HN = torch.where(place_N < empty_H1, 0.0, NO_EVENT).to(cosine_RS.dtype)
        there_RS = torch.where(mask_HS > 0, cosine_RS, NO_EVENT)
        every = torch.cat([there_RS, filled_HN.expand(there_RS.shape[0], -1)], dim=-1)
        return every.topk(kept, dim=-1).values

    def _said_fields(self) -> list[Field]:
        return [field for field in self.event_fields if field.kind == "numeric" or _small(field)]

    def _said(self, history: TargetHistory) -> Tensor:
        """The numbers of each event, 0 where missing, double [H, S, E]."""
        pairs = zip(self.event_fields, history.columns, strict=True)
        said = [_features(field, column) for field, column in pairs if field in self._said_fields()]
        return _filled(torch.cat(said, dim=-1)).double()


def _small(field: Field) -> bool:
    return field.size - FIRST_VALUE <= MOST_VALUES


def _width(field: Field) -> int:
    """How many features a column becomes."""
    if field.kind == "numeric":
        return 1
    return max(field.size - FIRST_VALUE, 0) if _small(field) else int(field.kind == "categorical")


def _features(field: Field, column: Tensor) -> Tensor:
    """A column [...], or [..., T] of tags, as features, float32 [..., its width]."""
    if field.kind == "numeric":
        return column.float().unsqueeze(-1)
    if _small(field):
        named = torch.arange(FIRST_VALUE, max(field.size, FIRST_VALUE), device=column.device)
        wide = column if field.kind == "tags" else column.unsqueeze(-1)
        return (wide.unsqueeze(-1) == named).any(dim=-2).float()
    return column.float().unsqueeze(-1) if field.kind == "categorical" else column[..., :0].float()


def _columns(block: Tensor, places: Sequence[int]) -> Tensor:
    return block.index_select(-1, torch.tensor(places, dtype=torch.int64, device=block.device))


def _filled(values: Tensor) -> Tensor:
    return torch.where(torch.isnan(values), 0.0, values)
