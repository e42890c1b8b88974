"""A feature set of thirty items in memory: every semantic type, awkward column names, missing values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ctr.config import ModelConfig
from ctr.data.batch import Batch
from ctr.data.feature_tables import FrozenTables
from ctr.model.click_model import ClickModel
from features.store.schema import Field, Schema, VectorSet
from tests.trained import plant_trees

ITEMS, USERS = 30, 10


def category(name: str, size: int) -> Field:
    return Field(name=name, kind="categorical", size=size)


def number(name: str) -> Field:
    """Its pieces are powers of two, so that single precision holds their slopes exactly."""
    return Field(name=name, kind="numeric", edges=(-4.0, -2.0, -1.0, -0.5, 0.5, 2.5))


SCHEMA = Schema(
    items=ITEMS,
    users=USERS,
    item=(
        category("item_id", 20),
        Field(name="item.tags", kind="tags", size=9, max_len=3),
        number("type"),
        number("price"),
        category("maker", 6),
    ),
    user=(category("user_id", 8), Field(name="likes", kind="tags", size=7, max_len=4), category("age", 5)),
    context=(category("age", 6), number("load")),
    candidate=(number("rate"), number("count")),
    event=(category("label", 4), number("residual")),
    vectors=(VectorSet(name="text", width=12, complete=False), VectorSet(name="image", width=7)),
    history_max_len=6,
    labels=("like", "long view"),
)


def with_many_tags() -> Schema:
    """The schema with a vocabulary of tags that is compared value by value."""
    item = [one.model_copy(update={"size": 100}) if one.name == "item.tags" else one for one in SCHEMA.item]
    return SCHEMA.model_copy(update={"item": tuple(item)})


def tables(seed: int = 0) -> FrozenTables:
    draw = torch.Generator().manual_seed(seed)
    price = torch.randn(ITEMS, generator=draw)
    price[torch.rand(ITEMS, generator=draw) < 0.3] = float("nan")
    present = torch.rand(ITEMS, generator=draw) < 0.6
    return FrozenTables(
        items={
            "item_id": torch.randint(1, 20, (ITEMS,), generator=draw),
            "item.tags": torch.randint(0, 9, (ITEMS, 3), generator=draw),
            "type": torch.randn(ITEMS, generator=draw),
            "price": price,
            "maker": torch.randint(0, 6, (ITEMS,), generator=draw),
        },
        users={
            "user_id": torch.randint(1, 8, (USERS,), generator=draw),
            "likes": torch.randint(0, 7, (USERS, 4), generator=draw),
            "age": torch.randint(1, 5, (USERS,), generator=draw),
        },
        vectors={
            "text": torch.randn(ITEMS, 12, generator=draw) * present.unsqueeze(-1),
            "image": torch.randn(ITEMS, 7, generator=draw),
        },
        present={"text": present, "image": torch.ones(ITEMS, dtype=torch.bool)},
    )


def model(dtype: torch.dtype = torch.float64, schema: Schema = SCHEMA, **settings: Any) -> ClickModel:
    """A model whose every parameter and batch norm statistic is away from its start, tables attached."""
    torch.manual_seed(8)
    config = ModelConfig(**{"embedding_dim": 4, "vector_dim": 5, "attention_dim": 16, "rows": 3, **settings})
    net = ClickModel(config, schema).to(dtype)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        for norm in net.modules():
            if isinstance(norm, torch.nn.BatchNorm1d):
                norm.running_mean.normal_()
                norm.running_var.uniform_(0.5, 2)
        for encoder in (net.item_encoder.columns, net.context_encoder, net.candidate_encoder, net.event_encoder):
            for table in encoder.tables:
                table.weight[0].zero_()
    plant_trees(net)
    net.attach(tables())
    return net


def numbers(shape: Sequence[int], draw: torch.Generator) -> Tensor:
    """Normal numbers, a fifth of them missing."""
    values = torch.randn(*shape, generator=draw)
    return values.masked_fill(torch.rand(*shape, generator=draw) < 0.2, float("nan"))


def batch(target_B: Tensor, history_BS: Tensor, seed: int = 0, distinct: bool = True) -> Batch:
    """A batch of these item rows; `distinct` false gives every position an entry of its own in `items_U`."""
    draw = torch.Generator().manual_seed(seed)
    rows, shape = len(target_B), history_BS.shape
    places = torch.cat([target_B, history_BS.flatten()])
    if distinct:
        items_U = torch.unique(torch.cat([torch.zeros(1, dtype=torch.int64), places]))
        index = torch.searchsorted(items_U, places)
    else:
        items_U = torch.cat([torch.zeros(1, dtype=torch.int64), places])
        index = torch.where(places == 0, 0, torch.arange(1, len(items_U)))
    load = torch.randn(rows, generator=draw)
    load[::3] = float("nan")
    made = Batch(
        items_U=items_U,
        target_B=index[:rows],
        history_BS=index[rows:].view(shape),
        user_B=torch.randint(0, USERS, (rows,), generator=draw),
        label_B=torch.ones(rows),
        weight_B=torch.ones(rows),
        events={
            "label": torch.randint(1, 4, shape, generator=draw) * (history_BS != 0),
            "residual": numbers(shape, draw).masked_fill(history_BS == 0, 0.0),
        },
        context={"age": torch.randint(1, 6, (rows,), generator=draw), "load": load},
        candidate={"rate": numbers((rows,), draw), "count": numbers((rows,), draw)},
    )
    made.validate()
    return made


def random_batch(rows: int = 9, positions: int = 6, seed: int = 0) -> Batch:
    """Histories of every length from none to full, left-padded, with unknown items (row 1) among them."""
    draw = torch.Generator().manual_seed(seed)
    history = torch.randint(1, ITEMS, (rows, positions), generator=draw)
    padded = torch.arange(rows).unsqueeze(-1) % (positions + 1) > torch.arange(positions)
    target = torch.randint(1, ITEMS, (rows,), generator=draw)
    return batch(target, history.masked_fill(padded, 0), seed)


def in_dtype(made: Batch, dtype: torch.dtype) -> Batch:
    """The batch with numbers of this type."""

    def cast(columns: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: v.to(dtype) if v.is_floating_point() else v for name, v in columns.items()}

    return replace(made, context=cast(made.context), candidate=cast(made.candidate), events=cast(made.events))
