"""A target and the user's events before it: one interface for a training batch and for a ranking request.

Readers of the history are written once, against `TargetHistory`. In a batch each row has a history of its own; in a
request all candidates share one.

Shapes: R rows (of a batch, or candidates of a request), H histories (R in a batch, 1 in a request), S positions
(newest last, padding in front), D item width, E width of the embedded events, K similarity spaces, W width
of one of them, T tags of an item, G weightings of one history.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctr.history.history_events import EmbeddedEvents, Events
from ctr.history.item_similarity import tag_cosine, tag_cosine_of_requests
from ctr.kernels.bag_products import RowBags
from features.store.schema import PADDING


class TargetHistory(ABC):
    """Target items, and the events before them.

    Args:
        target_RD: target items.
        mask: 1 at an event, 0 at padding, [H, S]. In single precision at least, so that counts and recency are exact
            under autocast, too.
        columns: raw event columns, [H, S] each, in the order of the schema.
        events: embedded event columns, or None where nothing is added to an item.
    """

    def __init__(self, target_RD: Tensor, mask: Tensor, columns: Sequence[Tensor], events: Events | None) -> None:
        self.target_RD = target_RD
        self.mask = mask
        self.columns = tuple(columns)
        self.events = events

    @property
    def recency(self) -> Tensor:
        """log(1 + events that came later), 0 at the newest position."""
        positions = self.mask.shape[1]
        return torch.log1p(torch.arange(positions, device=self.mask.device).to(self.mask.dtype)).flip(0)

    @cached_property
    def similarities(self) -> Tensor:
        """How alike target and event are in each similarity space, [K, R, S]; 0 where one of them is not in it."""
        return torch.stack(self._similarities())

    def event_dots(self, query_RE: Tensor) -> Tensor:
        """`query_r · events_s`, [R, S]."""
        assert self.events is not None
        return self.events.dots(query_RE)

    def event_sums(self, weights_RS: Tensor) -> Tensor:
        """`Σ_s weights_rs events_s`, [R, E]."""
        assert self.events is not None
        return self.events.sums(weights_RS)

    def pooled(self, weights_GRS: Tensor, values_HSV: Tensor) -> Tensor:
        """`Σ_s weights_grs values_s` of values of the events, [R, G, V]."""
        return weights_GRS.transpose(0, 1) @ values_HSV

    @abstractmethod
    def dots(self, query_RD: Tensor) -> Tensor:
        """`query_r · item_s`, [R, S]."""

    @abstractmethod
    def sums(self, weights_RS: Tensor) -> Tensor:
        """`Σ_s weights_rs item_s`, [R, D]."""

    @abstractmethod
    def items(self) -> Tensor:
        """The items of the history, [H, S, D]: a copy, for readers that need more than `dots` and `sums`."""

    @abstractmethod
    def learned_similarity(self, projection: nn.Linear) -> Tensor:
        """`(P x_target) · (P x_event)`, [R, S]: a similarity that is learned."""

    @abstractmethod
    def _similarities(self) -> list[Tensor]:
        """The similarity of target and event in each space, K tensors [R, S]."""


class BatchHistory(TargetHistory):
    """The histories of a training batch, as row numbers in its table of distinct items.

    Args:
        x_UD: distinct items of the batch.
        target_B: rows of the targets in that table.
        history_BS: rows of the events' items in that table; 0 is padding.
        columns: raw event columns.
        events: embedded event columns.
        unit_vectors: of the distinct items in the spaces that compare by cosine, [U, W] each.
        indices: of the distinct items in the spaces that compare value by value, as floats, [U, T] each.
    """

    def __init__(
        self,
        x_UD: Tensor,
        target_B: Tensor,
        history_BS: Tensor,
        columns: Sequence[Tensor],
        events: Events | None,
        unit_vectors: Sequence[Tensor] = (),
        indices: Sequence[Tensor] = (),
    ) -> None:
        target_BD = _rows(x_UD, target_B)
        # Half precision holds no whole number above 256: neither events nor positions could be counted in it.
        mask_BS = (history_BS != PADDING).to(torch.promote_types(x_UD.dtype, torch.float32))
        super().__init__(target_BD, mask_BS, columns, events)
        self._x_UD, self._target_B, self._history_BS = x_UD, target_B, history_BS
        self._unit_vectors, self._indices = unit_vectors, indices

    @cached_property
    def _bags(self) -> RowBags:
        return RowBags(self._x_UD, self._history_BS)

    def dots(self, query_RD: Tensor) -> Tensor:
        """`query_r · item_s`, [R, S]."""
        return self._bags.dots(query_RD)

    def sums(self, weights_RS: Tensor) -> Tensor:
        """`Σ_s weights_rs item_s`, [R, D]."""
        return self._bags.sums(weights_RS)

    def items(self) -> Tensor:
        """The items, copied, [R, S, D]."""
        return F.embedding(self._history_BS, self._x_UD)

    def learned_similarity(self, projection: nn.Linear) -> Tensor:
        """A learned similarity, [R, S], in the precision of the projection; each distinct item is projected once."""
        projected_UK = projection(self._x_UD.to(projection.weight.dtype))
        return self._dots_of(projected_UK)

    def _similarities(self) -> list[Tensor]:
        with torch.no_grad(), torch.autocast(self._x_UD.device.type, enabled=False):
            cosines = [self._dots_of(unit_UW) for unit_UW in self._unit_vectors]
            return cosines + [
                tag_cosine(F.embedding(self._target_B, index_UT), F.embedding(self._history_BS, index_UT))
                for index_UT in self._indices
            ]

    def _dots_of(self, table_UW: Tensor) -> Tensor:
        return RowBags(table_UW, self._history_BS).dots(_rows(table_UW, self._target_B))


def _rows(table_UW: Tensor, index_B: Tensor) -> Tensor:
    """`table[index]`, [B, W], as bags of one row each: targets get the precision and the gradients of events."""
    return RowBags(table_UW, index_B.unsqueeze(1)).sums(table_UW.new_ones(len(index_B), 1))


class RequestHistory(TargetHistory):
    """One user's history before all candidates of a request.

    Args:
        target_ND: candidate items.
        history_SD: items of the history.
        mask_1S: 1 at an event, 0 at padding.
        columns: raw event columns, [1, S] each.
        events_1SE: embedded event columns.
        unit_vectors: of candidates [N, W] and history [S, W], in the spaces that compare by cosine.
        indices: of candidates [N, T] and history [S, T], in the spaces that compare value by value.
        sizes: how many values each of these spaces has.
    """

    def __init__(
        self,
        target_ND: Tensor,
        history_SD: Tensor,
        mask_1S: Tensor,
        columns: Sequence[Tensor],
        events_1SE: Tensor | None,
        unit_vectors: Sequence[tuple[Tensor, Tensor]] = (),
        indices: Sequence[tuple[Tensor, Tensor]] = (),
        sizes: Sequence[int] = (),
    ) -> None:
        super().__init__(target_ND, mask_1S, columns, None if events_1SE is None else EmbeddedEvents(events_1SE))
        self.history_SD = history_SD
        self._unit_vectors, self._indices, self._sizes = unit_vectors, indices, sizes

    def pooled(self, weights_GRS: Tensor, values_HSV: Tensor) -> Tensor:
        """`Σ_s weights_grs values_s`, [R, G, V]: one product, since all rows have the same values."""
        return (weights_GRS @ values_HSV.squeeze(0)).transpose(0, 1)

    def dots(self, query_RD: Tensor) -> Tensor:
        """`query_r · item_s`, [R, S]."""
        return query_RD @ self.history_SD.T

    def sums(self, weights_RS: Tensor) -> Tensor:
        """`Σ_s weights_rs item_s`, [R, D]."""
        return weights_RS @ self.history_SD

    def items(self) -> Tensor:
        """The items, [1, S, D]."""
        return self.history_SD.unsqueeze(0)

    def learned_similarity(self, projection: nn.Linear) -> Tensor:
        """A learned similarity, [R, S]."""
        return projection(self.target_RD) @ projection(self.history_SD).T

    def _similarities(self) -> list[Tensor]:
        cosines = [target_NW @ history_SW.T for target_NW, history_SW in self._unit_vectors]
        return cosines + [
            tag_cosine_of_requests(target_NT, history_ST.unsqueeze(0), size)
            for (target_NT, history_ST), size in zip(self._indices, self._sizes, strict=True)
        ]
