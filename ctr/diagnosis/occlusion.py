"""Occlusion: explains the score of a candidate by what changes when one field is hidden, and by attention weights.

Shapes: N candidates, S history positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ctr.data.batch import Batch
from ctr.data.feature_tables import FrozenTables
from ctr.export.row_request import RowRequest
from ctr.history.target_history import TargetHistory
from ctr.model.click_model import ClickModel
from features.store.schema import PADDING, UNKNOWN, Field


@dataclass(frozen=True)
class Explanation:
    """The explanation of one candidate's score.

    Args:
        item: row of the candidate.
        score: calibrated probability of a click.
        past: position in the request's history (0 is the oldest event that is read) and weight of each event, by
            decreasing absolute weight; events of weight 0 are left out. Weights are those of the attention or, without
            one, of the evidence heads; their absolute values sum to 1. DIN has negative weights too: such an event
            lowers the score.
        contributions: by field, the logit minus the logit with the field hidden.
    """

    item: int
    score: float
    past: list[tuple[int, float]]
    contributions: dict[str, float]


@torch.inference_mode()
def explain(model: ClickModel, tables: FrozenTables, request: RowRequest) -> list[Explanation]:
    """Explain the score of each candidate of one request.

    A hidden field has the missing value (index 1, NaN, no vector), in candidate and history alike; all else stays.
    Contributions need not add up to the logit: if two fields hold the same information, hiding one changes little.

    Args:
        model: trained; its tables are attached again at the end, and it is in evaluation mode.
        tables: of its feature set.
        request: of N candidates.

    Returns:
        One explanation a candidate, in the order of the request.
    """
    model.eval()
    batch = request.batch(model.schema.history_max_len)
    logit_N = model(batch)
    weights_NS = _weights(model, batch)
    hidden = {name: (logit_N - model(other)) for name, other in _without_row_field(model, batch)}
    try:
        for name, other_tables in _without_item_field(model, tables):
            model.attach(other_tables)
            hidden[name] = logit_N - model(batch)
    finally:
        model.attach(tables)
    first = model.schema.history_max_len - len(request.history_item)
    found = []
    for n, row in enumerate(request.candidate_item):
        past = [(s - first, float(weights_NS[n, s])) for s in range(first, weights_NS.shape[1])]
        found.append(
            Explanation(
                item=int(row),
                score=float(torch.sigmoid(logit_N[n])),
                past=sorted((one for one in past if one[1]), key=lambda one: -abs(one[1])),
                contributions={name: float(change_N[n]) for name, change_N in hidden.items()},
            )
        )
    return found


def _weights(model: ClickModel, batch: Batch) -> Tensor:
    """Weights of the history's events for each candidate, float32 [N, S]; zeros if the model has no attention."""
    if not model.readers():
        return torch.zeros(len(batch), batch.history_BS.shape[1])
    past: TargetHistory = model.history(batch)
    for reader in (model.attention, model.evidence):
        if (weigh := getattr(reader, "weights", None)) is not None:
            weights_NS: Tensor = weigh(past)
            return weights_NS / weights_NS.abs().sum(dim=1, keepdim=True).clamp_min(1e-12)
    return torch.zeros(len(batch), batch.history_BS.shape[1])


def _without_row_field(model: ClickModel, batch: Batch) -> Iterator[tuple[str, Batch]]:
    schema = model.schema
    for one in model.context_fields:
        yield one.name, replace(batch, context=batch.context | {one.name: _blank(one, batch.context[one.name])})
    for one in schema.candidate:
        yield one.name, replace(batch, candidate=batch.candidate | {one.name: _blank(one, batch.candidate[one.name])})
    if model.reads_history:
        nothing = torch.zeros_like(batch.history_BS)
        none = {name: torch.zeros_like(values) for name, values in batch.events.items()}
        yield "history", replace(batch, history_BS=nothing, events=none)
    for one in model.event_fields:
        there = batch.history_BS != PADDING
        blank = torch.where(there, _blank(one, batch.events[one.name]), batch.events[one.name])
        yield f"history's {one.name}", replace(batch, events=batch.events | {one.name: blank})
    if model.user_fields:
        yield "user", replace(batch, user_B=torch.full_like(batch.user_B, UNKNOWN), user_versions_B=None)


def _without_item_field(model: ClickModel, tables: FrozenTables) -> Iterator[tuple[str, FrozenTables]]:
    for one in model.schema.item:
        yield one.name, replace(tables, items=tables.items | {one.name: _blank(one, tables.items[one.name])})
    for vectors in model.schema.vectors:
        name = vectors.name
        zeros, absent = torch.zeros_like(tables.vectors[name]), torch.zeros_like(tables.present[name])
        hidden = replace(tables, vectors=tables.vectors | {name: zeros}, present=tables.present | {name: absent})
        yield f"{name} vector", hidden


def _blank(field: Field, values: Tensor) -> Tensor:
    """The column with missing values; padding stays."""
    if field.kind == "numeric":
        return torch.full_like(values, np.nan)
    if field.kind == "tags":
        return torch.zeros_like(values)
    return torch.where(values == PADDING, values, torch.full_like(values, UNKNOWN))
