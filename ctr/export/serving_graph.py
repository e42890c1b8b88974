"""The serving graph: a trained model folded into tensors, which scores all candidates of one request.

Shapes: H history events of the request, N candidates, D item width, E width of the event embeddings,
F = D + E, W width of all similarity spaces, C context width, X tower width, M new items, T labels that the model
predicts. What does not depend on the candidate has one row.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from copy import deepcopy
from itertools import pairwise
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctr.export.folding.item_columns import ItemColumns, Past
from ctr.export.folding.trees import FoldedTrees
from ctr.export.precision.tables import Block
from ctr.history.sparse_attention import SparseTargetAttention
from ctr.history.target_history import RequestHistory
from ctr.model.click_model import ClickModel
from ctr.serving.bundle import SCORE
from ctr.towers.quadratic import QuadraticLayer, QuadraticNetwork
from ctr.trees.model_trees import mixed
from features.store.schema import PADDING

M = TypeVar("M", bound=nn.Module)
ITEMS_PER_CHUNK = 65_536


class RequestGraph(nn.Module):
    """Scores all candidates of one request. Equal to the model in `eval()`, up to rounding.

    Folded into tensors: the representation of every item (one gather replaces all item columns and vectors), the two
    matrix products of the attention, the rows and the batch norm of each quadratic layer. User, context and history
    are computed once a request, as is the context's part of the first quadratic layer. Trees read the same inputs, the
    columns of an item from the item table.

    Inputs, positional, in the order of `input_names`:

        user_<field>…      int64 [1], int64 [1, max_len] for tags, float32 [1] (NaN = missing)
        context_<field>…   the same
        history_item       int64 [H] item rows, 0 is padding; H may be 0
        history_<event>…   int64 [H], float32 [H] for numbers
        candidate_<field>… float32 [N], numbers of each candidate
        candidate_item     int64 [N] item rows

    Item rows from the table's length on are rows of `item_delta`: items that came after the export. What is exported
    here is one row of zeros that nothing reads; whoever runs the graph may give another.

    Only what the model reads is an input: no user id without `use_user_id`, no history without `use_history`.
    The output, `score`, is float32 [N], the calibrated probability of a click; `score_<task>` follows for each further
    label that the model predicts.

    Args:
        model: a trained model with its tables attached. It is copied, never changed.
    """

    item_table: Tensor
    item_delta: Tensor

    def __init__(self, model: ClickModel) -> None:
        super().__init__()
        self.register_buffer("item_table", item_table(model))
        self.register_buffer("item_delta", torch.zeros_like(self.item_table[:1]))
        # Of a row of the item table: x, the item's place in each similarity space, what is crossed, what trees read.
        self.widths = (model.item_encoder.width, *(model.spaces.widths if model.spaces is not None else ()))
        self.crosses = None if model.crosses is None else _frozen(model.crosses)
        self.widths += () if model.crosses is None else (model.crosses.width,)
        self.trees = None if model.trees is None else FoldedTrees(model.trees)
        self.widths += () if self.trees is None else (self.trees.features.item_width,)
        self.unit_spaces = model.spaces.unit_spaces if model.spaces is not None else 0
        self.sizes = model.spaces.sizes if model.spaces is not None else ()
        # What may lose bits in a variant: neither indices nor crossed columns.
        compared = 1 + self.unit_spaces
        self.table_blocks = [Block(width, place >= compared) for place, width in enumerate(self.widths) if width]
        self.context_encoder = _frozen(model.context_encoder)
        self.candidate_encoder = _frozen(model.candidate_encoder)
        self.event_encoder = _frozen(model.event_encoder)
        self.readers = nn.ModuleList(_folded_reader(reader) for reader in model.readers())
        self.tower = None if model.network is None else _folded_tower(model.network, model.context_encoder.width)
        self.calibrators = nn.ModuleList(_frozen(one) for one in (model.calibrator, *model.task_calibrators))
        self.output_names = (SCORE, *(f"{SCORE}_{name}" for name in model.config.tasks))
        user = [f"user_{field.name}" for field in model.user_fields]
        context = [f"context_{field.name}" for field in model.context_fields]
        events = [f"history_{field.name}" for field in model.event_fields]
        history = ["history_item", *events] if model.reads_history else []
        candidate = [f"candidate_{field.name}" for field in model.schema.candidate]
        lengths = (0, len(user) + len(context), len(history), len(candidate))
        self.bounds = tuple(itertools.accumulate(lengths))
        self.input_names = (*user, *context, *history, *candidate, "candidate_item")

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Calibrated probabilities, float32 [N] each, in the order of `output_names`."""
        context, events, numbers = (inputs[start:stop] for start, stop in pairwise(self.bounds))
        target = self.columns(self.rows(inputs[-1]))
        past = self._past(events[0], events[1:]) if events else None
        logits = [] if self.tower is None else self._tower_logits(self.tower, context, numbers, target, past)
        if self.trees is not None:
            of_trees = None if past is None else RequestHistory(*self.trees.compared(target, past), self.sizes)
            logits = mixed(logits, self.trees(context, numbers, target.of_trees, of_trees), self.trees.share)
        pairs = zip(self.calibrators, logits, strict=True)
        return tuple(probability(calibrate(logit_N)) for calibrate, logit_N in pairs)

    def columns(self, rows: Tensor) -> ItemColumns:
        """Rows of the item table, [..., D + W], as what they are made of."""
        x, *others = rows.split(self.widths, dim=-1)
        of_trees = others.pop() if self.trees is not None else None
        crossed = others.pop() if self.crosses is not None else None
        return ItemColumns(x, others[: self.unit_spaces], others[self.unit_spaces :], crossed, of_trees)

    def _tower_logits(
        self,
        tower: nn.Module,
        context: Sequence[Tensor],
        numbers: Sequence[Tensor],
        target: ItemColumns,
        past: Past | None,
    ) -> list[Tensor]:
        blocks = [self.candidate_encoder(numbers)] if numbers else []
        blocks.append(target.x)
        if self.readers and past is not None:
            history = self._history(target, past)
            blocks += [reader(history) for reader in self.readers]
        context_1C = self.context_encoder(context) if self.context_encoder.width else None
        logits_NH: Tensor = tower(context_1C, torch.cat(blocks, dim=-1))
        if self.crosses is not None:
            logits_NH = logits_NH + self.crosses(context, target.crossed)
        return list(logits_NH.unbind(dim=-1))

    def rows(self, item_R: Tensor) -> Tensor:
        """Rows of the item table and, from its length on, of the delta, float32 [R, D + W]."""
        items = len(self.item_table)
        row_RD = F.embedding(item_R.clamp(max=items - 1), self.item_table)
        # Mostly none: only these rows are written again, not each row chosen from two.
        later_L = torch.nonzero(item_R >= items).squeeze(1)
        return row_RD.index_put((later_L,), F.embedding(item_R[later_L] - items, self.item_delta))

    def _past(self, item_H: Tensor, events: Sequence[Tensor]) -> Past:
        # One padding event in front, which no reader counts: so a history of length 0 has a position too.
        item_H, *events = (F.pad(column, (1, 0)) for column in (item_H, *events))
        items = self.columns(self.rows(item_H))
        mask_1H = (item_H != PADDING).to(items.x.dtype).unsqueeze(0)
        return Past(items, mask_1H, [column.unsqueeze(0) for column in events])

    def _history(self, target: ItemColumns, past: Past) -> RequestHistory:
        events_1HE = self.event_encoder(past.events) if self.event_encoder.width else None
        unit_vectors, indices = target.pairs(past.items)
        return RequestHistory(
            target.x, past.items.x, past.mask, past.events, events_1HE, unit_vectors, indices, self.sizes
        )


class ItemGraph(nn.Module):
    """Encodes items that training did not see: one row of the item table each.

    Inputs, positional, in the order of `input_names` (columns as the encoder writes them, vectors normalised
    and reduced as in the feature set):

        item_<field>…      int64 [M] (the id of a new item is 1), int64 [M, max_len] for tags, float32 [M]
        vector_<set>…      float32 [M, width], zeros where an item has none
        present_<set>…     bool [M], whether the item has a vector

    The output, `row`, is float32 [M, D + W]: x, then the item's place in each similarity space, what is crossed, and
    what trees read. Only what the model reads is an input.

    Args:
        model: a trained model. It is copied, never changed.
    """

    output_names = ("row",)

    def __init__(self, model: ClickModel) -> None:
        super().__init__()
        self.encoder = None if model.network is None else _frozen(model.item_encoder)
        self.trees = None if model.trees is None else model.trees.features
        self.spaces = model.spaces
        self.crosses = None if model.crosses is None else _frozen(model.crosses)
        columns = [f"item_{field.name}" for field in model.schema.item]
        sets = [vectors.name for vectors in model.schema.vectors]
        self.input_names = (
            *columns,
            *(f"vector_{name}" for name in sets),
            *(f"present_{name}" for name in sets),
        )
        self.bounds = (0, len(columns), len(columns) + len(sets), len(columns) + 2 * len(sets))

    def forward(self, *inputs: Tensor) -> Tensor:
        """Rows of the item table, float32 [M, D + W]."""
        columns, vectors, present = (inputs[start:stop] for start, stop in pairwise(self.bounds))
        blocks = [self.encoder(columns, vectors, present)] if self.encoder is not None else []
        blocks += self.spaces(columns, vectors).columns if self.spaces is not None else []
        blocks += [self.crosses.indices(columns, blocks[0])] if self.crosses is not None else []
        blocks += [self.trees.item_block(columns)] if self.trees is not None else []
        return torch.cat(blocks, dim=-1)


class FoldedAttention(nn.Module):
    """Sparse target attention of N candidates to one history, which is projected once for all of them.

    `score = x_n · (M_score y_h)` and `o = Σ_h a_h (y_h M_value) + x_n`: the products of the weights are
    folded, and stand on the side of the history, the shorter one, which does not grow with the candidates.
    """

    score_FD: Tensor
    value_FD: Tensor

    def __init__(self, attention: SparseTargetAttention) -> None:
        super().__init__()
        self.register_buffer("score_FD", attention.score_matrix().detach().T.contiguous())
        self.register_buffer("value_FD", attention.value_matrix().detach())

    def forward(self, history: RequestHistory) -> Tensor:
        """The interest [N, D]."""
        history_HF = history.history_SD
        if history.events is not None:
            history_HF = torch.cat([history_HF, history.events.embedded().squeeze(0)], dim=-1)
        scores_NH = history.target_RD @ (history_HF @ self.score_FD).T
        return torch.relu(history.mask * scores_NH) @ (history_HF @ self.value_FD) + history.target_RD


class FoldedQuadratic(nn.Module):
    """A quadratic network in evaluation mode: each layer is one matrix; the context is multiplied once a request.

    Args:
        network: trained.
        context_dim: how many of its inputs, the first ones, are context.
    """

    def __init__(self, network: QuadraticNetwork, context_dim: int) -> None:
        super().__init__()
        first, *rest = [layer for layer in network.layers if isinstance(layer, QuadraticLayer)]
        self.first = FoldedFirstLayer(first, context_dim)
        self.rest = nn.ModuleList(FoldedLayer(layer) for layer in rest)
        self.logit = _frozen(network.logit)

    def forward(self, context_1C: Tensor | None, items_NY: Tensor) -> Tensor:
        """Context float32 [1, C] (None if C is 0) and candidates float32 [N, X - C] to logits float32 [N, T].

        Of several requests, context [U, 1, C] and candidates [U, N, X - C] to logits [U · N, T].
        """
        z_NX = self.first(context_1C, items_NY)
        for layer in self.rest:
            z_NX = layer(z_NX)
        logits_NH: Tensor = self.logit(z_NX)
        return logits_NH


class Expanded(nn.Module):
    """Any tower but the quadratic one: the context is repeated for each candidate.

    Args:
        tower: trained.
    """

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = _frozen(tower)

    def forward(self, context_1C: Tensor | None, items_NY: Tensor) -> Tensor:
        """As `FoldedQuadratic`."""
        context = [] if context_1C is None else [_expanded(context_1C, items_NY)]
        logits_NH: Tensor = self.tower(torch.cat([*context, items_NY], dim=-1).flatten(0, -2))
        return logits_NH


class FoldedLayer(nn.Module):
    """A quadratic layer in evaluation mode, its rows and batch norm folded into W, b and a shift.

    z <- z + PReLU(z ⊙ (W z + b) + shift)

    Args:
        layer: trained.
    """

    weight: Tensor
    bias: Tensor
    shift: Tensor

    def __init__(self, layer: QuadraticLayer) -> None:
        super().__init__()
        weight_XX, bias_X = layer.merged_rows()
        scale_X, shift_X = _batch_norm_as_scale_and_shift(layer.norm)
        # BN(z ⊙ (W z + b)) = z ⊙ (s W z + s b) + shift: the scale disappears into the weights.
        self.register_buffer("weight", (weight_XX * scale_X.unsqueeze(-1)).detach())
        self.register_buffer("bias", (bias_X * scale_X).detach())
        self.register_buffer("shift", shift_X.detach())
        self.activation = _frozen(layer.activation)

    def forward(self, z_NX: Tensor) -> Tensor:
        """float32 [N, X] to float32 [N, X]."""
        return self.cross(z_NX, F.linear(z_NX, self.weight, self.bias))

    def cross(self, z_NX: Tensor, linear_NX: Tensor) -> Tensor:
        """The layer's output, float32 [N, X], from its input and `W z + b`, both float32 [N, X]."""
        return z_NX + self.activation(z_NX * linear_NX + self.shift)


class FoldedFirstLayer(nn.Module):
    """The first layer: one context row beside N candidates of each request; the context is multiplied once.

    Args:
        layer: the trained layer.
        context_dim: how many of its inputs, the first ones, are context.
    """

    of_context: Tensor
    of_items: Tensor

    def __init__(self, layer: QuadraticLayer, context_dim: int) -> None:
        super().__init__()
        self.layer = FoldedLayer(layer)
        # Tensors of their own: a part that the graph cuts out of a weight is not found by what converts weights.
        of_context, of_items = self.layer.weight.tensor_split([context_dim], dim=1)
        self.register_buffer("of_context", of_context.contiguous())
        self.register_buffer("of_items", of_items.contiguous())

    def forward(self, context_1C: Tensor | None, items_NY: Tensor) -> Tensor:
        """Context float32 [1, C] (None if C is 0) and candidates float32 [N, X - C] to float32 [N, X].

        Of several requests, context [U, 1, C] and candidates [U, N, X - C] to [U · N, X].
        """
        if context_1C is None:
            z_NX: Tensor = self.layer(items_NY.flatten(0, -2))
            return z_NX
        linear_NX = F.linear(context_1C, self.of_context, self.layer.bias) + F.linear(items_NY, self.of_items)
        z_NX = torch.cat([_expanded(context_1C, items_NY), items_NY], dim=-1)
        return self.layer.cross(z_NX.flatten(0, -2), linear_NX.flatten(0, -2))


@torch.no_grad()
def item_table(model: ClickModel) -> Tensor:
    """Representations and unit vectors of all attached items, float32 [items, D + W]; row 0 (padding) is zeros.

    Args:
        model: its tables attached.
    """
    device = model.calibrator.slope.device
    chunks = torch.arange(model.schema.items, device=device).split(ITEMS_PER_CHUNK)
    # Filled in place: to join the chunks would take the memory of two tables.
    one_row = model.item_rows(chunks[0][:1])
    table_ID = one_row.new_empty(model.schema.items, one_row.shape[1])
    for chunk in chunks:
        table_ID[chunk] = model.item_rows(chunk)
    return table_ID


def probability(logit_N: Tensor) -> Tensor:
    """`1 / (1 + exp(-logit))` in three operations, because ONNX Runtime's sigmoid is only exact to 1e-7 absolute.

    At a click probability of 3e-5 that is an error of a quarter of a percent.
    """
    return torch.reciprocal(1 + torch.exp(-logit_N))


def _expanded(context_1C: Tensor, items_NY: Tensor) -> Tensor:
    """The context beside each candidate, [N, C]; of several requests [U, 1, C] to [U, N, C]."""
    # Not len(): it is a plain int, which would freeze N in the exported graph.
    return context_1C.expand(*items_NY.shape[:-1], -1)


def _batch_norm_as_scale_and_shift(norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    return scale, norm.bias - norm.running_mean * scale


def _folded_reader(reader: nn.Module) -> nn.Module:
    return FoldedAttention(reader) if isinstance(reader, SparseTargetAttention) else _frozen(reader)


def _folded_tower(tower: nn.Module, context_dim: int) -> nn.Module:
    return FoldedQuadratic(tower, context_dim) if isinstance(tower, QuadraticNetwork) else Expanded(tower)


def _frozen(module: M) -> M:
    """A copy in evaluation mode, each PReLU of one slope as a leaky ReLU, which ONNX Runtime is faster at."""
    frozen = deepcopy(module).eval().requires_grad_(False)
    if isinstance(frozen, nn.PReLU):
        return cast(M, _leaky(frozen))
    for parent in list(frozen.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.PReLU):
                setattr(parent, name, _leaky(child))
    return frozen


def _leaky(activation: nn.PReLU) -> nn.LeakyReLU:
    return nn.LeakyReLU(activation.weight.item())
