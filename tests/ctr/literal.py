"""The model's equations, written as they are read: slow and obvious, the reference for the shipped layers."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from ctr.data.batch import Batch
from ctr.data.feature_tables import FrozenTables
from ctr.history.sparse_attention import SparseTargetAttention
from ctr.model.click_model import ClickModel
from ctr.model.numbers import StraightNumbers
from ctr.towers.quadratic import QuadraticLayer


def attention(layer: SparseTargetAttention, target: Tensor, history: Tensor, mask: Tensor) -> Tensor:
    """a_s = ReLU(m_s (W_q x_t)·(W_k y_s) / sqrt(K)), o = W_o Σ_s a_s W_v y_s + x_t; history [B, S, F]."""
    width = layer.query.out_features
    query = layer.query(target)
    interest = torch.zeros_like(query)
    for s in range(history.shape[1]):
        dots = (query * layer.key(history[:, s])).sum(-1)
        weight = torch.relu(mask[:, s] * dots / math.sqrt(width))
        interest = interest + weight.unsqueeze(-1) * layer.value(history[:, s])
    return layer.output(interest) + target


def quadratic_layer(layer: QuadraticLayer, z: Tensor) -> Tensor:
    """h = Σ_r z ⊙ (W_r z + b_r), z + PReLU(BN(h)): without dropout noise, batch norm written out."""
    width = z.shape[1]
    h = torch.zeros_like(z)
    for weight, bias in zip(layer.rows.weight.split(width), layer.rows.bias.split(width), strict=True):
        h = h + z * (z @ weight.T + bias)
    norm = layer.norm
    if layer.training:
        mean, variance = h.mean(0), h.var(0, unbiased=False)
    else:
        assert norm.running_mean is not None and norm.running_var is not None
        mean, variance = norm.running_mean, norm.running_var
    normal = (h - mean) / torch.sqrt(variance + norm.eps) * norm.weight + norm.bias
    return z + torch.where(normal > 0, normal, layer.activation.weight * normal)


def item(model: ClickModel, tables: FrozenTables, row: int) -> Tensor:
    """x_i = [each column ; the numbers ; each vector] of one catalogue row."""
    encoder = model.item_encoder
    if row == 0:
        return torch.zeros(encoder.width, dtype=model.network.logit.weight.dtype)
    fields = model.schema.item
    blocks = columns(encoder.columns, [f.kind for f in fields], [tables.items[f.name][row] for f in fields])
    for vector, encode in zip(model.schema.vectors, encoder.vectors, strict=True):
        there = bool(tables.present[vector.name][row])
        value = tables.vectors[vector.name][row].to(blocks[0].dtype)
        blocks.append(encode.projection.weight @ value if there else encode.missing)
    return torch.cat(blocks)


def columns(encoder: torch.nn.Module, kinds: list[str], values: list[Tensor]) -> list[Tensor]:
    """Blocks of one row's columns: an embedding each, the mean of real tags, then those of its numbers."""
    weights = iter([table.weight for table in encoder.tables])
    blocks, numbers = [], []
    for kind, value in zip(kinds, values, strict=True):
        if kind == "numeric":
            numbers.append(float(value))
        elif kind == "tags":
            weight = next(weights)
            real = [weight[index] for index in value.tolist() if index != 0]
            blocks.append(torch.stack(real).mean(0) if real else torch.zeros_like(weight[0]))
        else:
            weight = next(weights)
            blocks.append(weight[int(value)] if int(value) else torch.zeros_like(weight[0]))
    return blocks + (number_blocks(encoder, numbers) if numbers else [])


def number_blocks(encoder: torch.nn.Module, numbers: list[float]) -> list[Tensor]:
    """One straight block of all numbers, or the sum of curves that bend at the edges of each."""
    weight = encoder.numeric.weight
    if isinstance(encoder.numeric, StraightNumbers):
        missing = [float(math.isnan(value)) for value in numbers]
        known = [0.0 if gone else value for value, gone in zip(numbers, missing, strict=True)]
        return [weight @ torch.tensor(known + missing, dtype=weight.dtype)]
    fields = [field for field in encoder.fields if field.kind == "numeric"]
    per_column = weight.shape[1] // len(fields)
    total = torch.zeros_like(weight[:, 0])
    for place, (field, value) in enumerate(zip(fields, numbers, strict=True)):
        own = weight[:, place * per_column : (place + 1) * per_column]
        if math.isnan(value):
            total = total + own[:, -1]
            continue
        for k, (low, high) in enumerate(pairwise(field.edges)):
            total = total + own[:, k] * min(max((value - low) / (high - low), 0.0), 1.0)
    return [total]


def logits(model: ClickModel, tables: FrozenTables, batch: Batch) -> Tensor:
    """The whole model, row by row and position by position, up to the quadratic layers."""
    rows = []
    for b in range(len(batch)):
        target = item(model, tables, int(batch.items_U[batch.target_B[b]]))
        user = [tables.users[f.name][int(batch.user_B[b])] for f in model.user_fields]
        context = [batch.context[f.name][b] for f in model.context_fields]
        kinds = [f.kind for f in (*model.user_fields, *model.context_fields)]
        numbers = [batch.candidate[f.name][b] for f in model.schema.candidate]
        candidate = columns(model.candidate_encoder, [f.kind for f in model.schema.candidate], numbers)
        parts = [*columns(model.context_encoder, kinds, [*user, *context]), *candidate, target]
        if model.attention is not None:
            parts.append(_interest(model, tables, batch, b, target))
        rows.append(torch.cat(parts))
    z = torch.stack(rows)
    for layer in model.network.layers:
        z = quadratic_layer(layer, z)
    return F.linear(z, model.network.logit.weight, model.network.logit.bias)[:, 0]


def _interest(model: ClickModel, tables: FrozenTables, batch: Batch, b: int, target: Tensor) -> Tensor:
    positions = []
    for s, place in enumerate(batch.history_BS[b].tolist()):
        events = [batch.events[f.name][b, s] for f in model.event_fields]
        kinds = [f.kind for f in model.event_fields]
        x = item(model, tables, int(batch.items_U[place]))
        positions.append(torch.cat([x, *columns(model.event_encoder, kinds, events)]))
    width = model.item_encoder.width + model.event_encoder.width
    history = torch.stack(positions) if positions else target.new_zeros(0, width)
    mask = (batch.history_BS[b] != 0).to(target.dtype)
    return attention(model.attention, target.unsqueeze(0), history.unsqueeze(0), mask.unsqueeze(0))[0]
