"""The scoring graph: a trained model folded into tensors, which scores many requests at once, for offline scoring.

Shapes: U requests of N candidates each, R = U · N rows (the candidates of a request follow each other), S history
positions (padding in front), D item width, E width of the event embeddings, W width of a similarity space, C context
width, X tower width, T labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from ctr.export.folding.item_columns import ItemColumns, Past
from ctr.export.serving_graph import FoldedAttention, RequestGraph, probability
from ctr.history.history_events import Events
from ctr.history.item_similarity import tag_cosine_of_requests
from ctr.history.target_history import TargetHistory
from ctr.trees.model_trees import mixed
from features.store.schema import PADDING

Repeat = Callable[[Tensor], Tensor]


class ScoringGraph(nn.Module):
    """Scores all candidates of many requests. Equal to `RequestGraph` for each of them, up to rounding.

    User, context and history are computed once a request, as in the request graph; what is different is their first
    axis. Inputs, positional, in the order of `input_names`, those of the request graph:

        user_<field>…      int64 [U], int64 [U, max_len] for tags, float32 [U] (NaN = missing)
        context_<field>…   the same
        history_item       int64 [U, S] item rows, 0 is padding, which stands in front; S is at least 1
        history_<event>…   int64 [U, S], float32 [U, S] for numbers
        candidate_<field>… float32 [U, N]
        candidate_item     int64 [U, N] item rows; the score of padding means nothing

    The outputs are float32 [U, N], named as those of the request graph.

    Args:
        folded: its parts are shared, its item table too.
    """

    def __init__(self, folded: RequestGraph) -> None:
        super().__init__()
        self.folded = folded
        self.input_names = folded.input_names
        self.output_names = folded.output_names

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Calibrated probabilities, float32 [U, N] each, in the order of `output_names`."""
        folded = self.folded
        context, events, numbers = (inputs[start:stop] for start, stop in pairwise(folded.bounds))
        item_UN = inputs[-1]
        requests, candidates = item_UN.shape

        def repeat(values: Tensor) -> Tensor:
            """Rows of requests [U, …] as rows of their candidates [R, …]."""
            return values.unsqueeze(1).expand(-1, candidates, *values.shape[1:]).flatten(0, 1)

        target = folded.columns(folded.rows(item_UN.flatten()))
        number_R = [number_UN.flatten() for number_UN in numbers]
        past = self._past(events[0], events[1:]) if events else None
        logits: list[Tensor] = []
        if folded.tower is not None:
            blocks = [folded.candidate_encoder(number_R)] if numbers else []
            blocks.append(target.x)
            if folded.readers and past is not None:
                history = self._history(target, past, repeat)
                blocks += [_read(reader, history) for reader in folded.readers]
            context_UC = folded.context_encoder(context) if folded.context_encoder.width else None
            items_UNY = torch.cat(blocks, dim=-1).view(requests, candidates, -1)
            logits_RT = folded.tower(None if context_UC is None else context_UC.unsqueeze(1), items_UNY)
            if folded.crosses is not None:
                logits_RT = logits_RT + folded.crosses([repeat(column) for column in context], target.crossed)
            logits = list(logits_RT.unbind(dim=-1))
        if folded.trees is not None:
            of_trees = None
            if past is not None:
                of_trees = RequestsHistory(*folded.trees.compared(target, past), folded.sizes, repeat)
            tree_R = folded.trees([repeat(column) for column in context], number_R, target.of_trees, of_trees)
            logits = mixed(logits, tree_R, folded.trees.share)
        pairs = zip(folded.calibrators, logits, strict=True)
        return tuple(probability(calibrate(logit_R)).view(requests, candidates) for calibrate, logit_R in pairs)

    def _past(self, item_US: Tensor, events: Sequence[Tensor]) -> Past:
        rows = self.folded.rows(item_US.flatten())
        items = self.folded.columns(rows.view(item_US.shape[0], item_US.shape[1], -1))
        return Past(items, (item_US != PADDING).to(items.x.dtype), list(events))

    def _history(self, target: ItemColumns, past: Past, repeat: Repeat) -> RequestsHistory:
        events_USE = self.folded.event_encoder(past.events) if self.folded.event_encoder.width else None
        unit_vectors, indices = target.pairs(past.items)
        return RequestsHistory(
            target.x,
            past.items.x,
            past.mask,
            past.events,
            events_USE,
            unit_vectors,
            indices,
            self.folded.sizes,
            repeat,
        )


class RequestsHistory(TargetHistory):
    """The histories of U requests before their candidates: products are one matrix product a request.

    `mask` and `columns` are repeated for the candidates, as in a training batch.

    Args:
        target_RD: candidate items.
        history_USD: items of the histories.
        mask_US: 1 at an event, 0 at padding.
        columns: raw event columns, [U, S] each.
        events_USE: embedded event columns.
        unit_vectors: of candidates [R, W] and histories [U, S, W], in the spaces that compare by cosine.
        indices: of candidates [R, T] and histories [U, S, T], in the spaces that compare value by value.
        sizes: how many values each of these spaces has.
        repeat: rows of requests for their candidates, [U, …] to [R, …].
    """

    def __init__(
        self,
        target_RD: Tensor,
        history_USD: Tensor,
        mask_US: Tensor,
        columns: Sequence[Tensor],
        events_USE: Tensor | None,
        unit_vectors: Sequence[tuple[Tensor, Tensor]],
        indices: Sequence[tuple[Tensor, Tensor]],
        sizes: Sequence[int],
        repeat: Repeat,
    ) -> None:
        events = None if events_USE is None else RequestsEvents(events_USE, repeat)
        super().__init__(target_RD, repeat(mask_US), [repeat(column) for column in columns], events)
        self._history_USD = history_USD
        self._unit_vectors, self._indices, self._sizes = unit_vectors, indices, sizes
        self._repeat = repeat

    def dots(self, query_RD: Tensor) -> Tensor:
        """`query_r · item_s`, [R, S]."""
        return _dots(query_RD, self._history_USD)

    def sums(self, weights_RS: Tensor) -> Tensor:
        """`Σ_s weights_rs item_s`, [R, D]."""
        return _sums(weights_RS, self._history_USD)

    def items(self) -> Tensor:
        """The items, copied, [R, S, D]."""
        return self._repeat(self._history_USD)

    def learned_similarity(self, projection: nn.Linear) -> Tensor:
        """A learned similarity, [R, S]."""
        return _dots(projection(self.target_RD), projection(self._history_USD))

    def _similarities(self) -> list[Tensor]:
        cosines = [_dots(target_RW, history_USW) for target_RW, history_USW in self._unit_vectors]
        return cosines + [
            tag_cosine_of_requests(target_RT, history_UST, size)
            for (target_RT, history_UST), size in zip(self._indices, self._sizes, strict=True)
        ]


class RequestsEvents(Events):
    """Embedded event columns of U requests, and their products with rows of their candidates.

    Args:
        events_USE: embedded event columns.
        repeat: rows of requests for their candidates.
    """

    def __init__(self, events_USE: Tensor, repeat: Repeat) -> None:
        self._events_USE = events_USE
        self._repeat = repeat

    def embedded(self) -> Tensor:
        """Each event, copied, [R, S, E]."""
        return self._repeat(self._events_USE)

    def dots(self, query_RE: Tensor) -> Tensor:
        """`query_r · events_s`, [R, S]."""
        return _dots(query_RE, self._events_USE)

    def sums(self, weights_RS: Tensor) -> Tensor:
        """`Σ_s weights_rs events_s`, [R, E]."""
        return _sums(weights_RS, self._events_USE)


def _dots(query_RW: Tensor, table_USW: Tensor) -> Tensor:
    """Products of each row with all positions of its request, [R, S]."""
    query_UNW = query_RW.view(table_USW.shape[0], -1, table_USW.shape[2])
    return (query_UNW @ table_USW.transpose(1, 2)).flatten(0, 1)


def _sums(weights_RS: Tensor, table_USW: Tensor) -> Tensor:
    """Sums of the positions of each row's request, [R, W]."""
    weights_UNS = weights_RS.view(table_USW.shape[0], -1, table_USW.shape[1])
    return (weights_UNS @ table_USW).flatten(0, 1)


def _read(reader: nn.Module, history: RequestsHistory) -> Tensor:
    """The output of a reader, [R, its width]."""
    if isinstance(reader, FoldedAttention):
        return _interest(reader, history)
    read_RW: Tensor = reader(history)
    return read_RW


def _interest(attention: FoldedAttention, history: RequestsHistory) -> Tensor:
    """As `FoldedAttention`, [R, D], but the matrices multiply the candidates: mostly fewer than the events here."""
    item_dim = history.target_RD.shape[1]
    query_RF = history.target_RD @ attention.score_FD.T
    scores_RS = history.dots(query_RF[:, :item_dim])
    if history.events is not None:
        scores_RS = scores_RS + history.event_dots(query_RF[:, item_dim:])
    weights_RS = torch.relu(history.mask * scores_RS)
    pooled = [history.sums(weights_RS)]
    if history.events is not None:
        pooled.append(history.event_sums(weights_RS))
    return torch.cat(pooled, dim=-1) @ attention.value_FD + history.target_RD
