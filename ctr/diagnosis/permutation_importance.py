"""Permutation importance: the AUC that a trained model loses when one input is shuffled over rows or items.

Shapes: N scored rows, B rows of a batch, S history positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ctr.data.batch import Batch
from ctr.data.feature_tables import FrozenTables, frozen_tables, order_among_real
from ctr.data.loader import Loader
from ctr.evaluation.bootstrap import Interval, paired_difference
from ctr.model.click_model import ClickModel
from ctr.training.loop import device_of
from features.progress import Progress
from features.progress import progress as show_progress
from features.store.feature_set import FeatureSet, SplitName
from features.store.schema import PADDING

MOST_ROWS = 20_000
BATCH_ROWS = 5_000

ChangeBatch = Callable[[Batch, torch.Generator], Batch]
ChangeTables = Callable[[FrozenTables, torch.Generator], FrozenTables]


@dataclass(frozen=True)
class Importance:
    """The importance of one input.

    Args:
        side: `context`, `user`, `candidate`, `item`, `event`, `history` or `vectors`.
        name: of the field or vector set; `history` for the whole past.
        drop: AUC minus AUC with the input shuffled, with its 95 % paired interval over users.
    """

    side: str
    name: str
    drop: Interval


def permutation_importance(
    model: ClickModel,
    feature_set: FeatureSet,
    split: SplitName,
    seed: int = 0,
    progress: Progress = show_progress,
) -> list[Importance]:
    """Shuffle one input at a time and measure how much AUC the model loses (Breiman 2001), largest loss first.

    Columns of rows are shuffled among the rows of a batch, which is a random sample of the split; columns of events
    among the events of a batch; histories, whole, among the rows. Columns of items and users are shuffled among the
    real items or users (if they change over time, among all versions), for candidate and history alike; the vectors of
    a set among the items, together with whether an item has one.

    A drop says how much *this* model relies on the input, not how much information the input holds: if two inputs hold
    the same information, each may have a small drop. An input that the model does not read has a drop of exactly 0. The
    interval is a paired bootstrap over users. It leaves out the randomness of the single shuffle, which is small except
    for tables of few items.

    Args:
        model: trained. At the end the feature set's tables are attached, and it is in evaluation mode.
        feature_set: whose rows are scored.
        split: which of them; a random 20,000 of a larger split.
        seed: of the sample, the shuffles and the bootstrap.
        progress: how to show it.

    Raises:
        DataError: the sampled rows are all of one class.
    """
    model.eval()
    tables = frozen_tables(feature_set)
    batches = _sample(feature_set, split, seed)
    labels, weights, users = (
        np.concatenate([values.numpy() for values in found])
        for found in zip(*((batch.label_B, batch.weight_B, batch.user_B) for batch in batches), strict=True)
    )
    whole = _logits(model, batches)
    found = []

    def measure(side: str, name: str, shuffled: np.ndarray) -> None:
        found.append(
            Importance(side, name, paired_difference(labels, whole, shuffled, weights, clusters=users, seed=seed))
        )
        bar.advance(1)

    of_rows, of_tables = list(_row_inputs(feature_set)), list(_table_inputs(feature_set))
    with progress("permutation importance", total=len(of_rows) + len(of_tables), unit="inputs") as bar:
        for side, name, change_batch in of_rows:
            draw = torch.Generator().manual_seed(seed)
            measure(side, name, _logits(model, [change_batch(batch, draw) for batch in batches]))
        try:
            for side, name, change_tables in of_tables:
                model.attach(change_tables(tables, torch.Generator().manual_seed(seed)))
                measure(side, name, _logits(model, batches))
        finally:
            model.attach(tables)
    return sorted(found, key=lambda one: -one.drop.value)


def _sample(feature_set: FeatureSet, split: SplitName, seed: int) -> list[Batch]:
    """Up to `MOST_ROWS` rows in random order, so that a batch mixes users and times."""
    rows = min(feature_set.manifest.windows[split].rows, MOST_ROWS)
    count = -(-rows // BATCH_ROWS)
    # Batches of equal size: shuffling a last one of few rows would change little.
    loader = Loader(feature_set, split, -(-rows // count), seed=seed, shuffle=True)
    with closing(loader.epoch(0)) as batches:
        return list(islice(batches, count))


@torch.inference_mode()
def _logits(model: ClickModel, batches: Sequence[Batch]) -> np.ndarray:
    """Logits of all rows, float64 [N]."""
    device = device_of(model)
    return np.concatenate([model(batch.to(device)).double().cpu().numpy() for batch in batches])


def _row_inputs(feature_set: FeatureSet) -> Iterator[tuple[str, str, ChangeBatch]]:
    schema = feature_set.schema
    for one in schema.context:
        yield "context", one.name, _row_column("context", one.name)
    for one in schema.candidate:
        yield "candidate", one.name, _row_column("candidate", one.name)
    for one in schema.event:
        yield "event", one.name, _event_column(one.name)
    yield "history", "history", _exchange_histories


def _table_inputs(feature_set: FeatureSet) -> Iterator[tuple[str, str, ChangeTables]]:
    schema = feature_set.schema
    for one in schema.user:
        yield "user", one.name, _table_column("users", one.name)
    for one in schema.item:
        yield "item", one.name, _table_column("items", one.name)
    for vectors in schema.vectors:
        yield "vectors", vectors.name, _vector_set(vectors.name)


def _row_column(side: str, name: str) -> ChangeBatch:
    def change(batch: Batch, draw: torch.Generator) -> Batch:
        columns: dict[str, Tensor] = getattr(batch, side)
        order_B = torch.randperm(len(batch), generator=draw)
        changed: dict[str, Any] = {side: columns | {name: columns[name][order_B]}}
        return replace(batch, **changed)

    return change


def _event_column(name: str) -> ChangeBatch:
    def change(batch: Batch, draw: torch.Generator) -> Batch:
        there_BS = batch.history_BS != PADDING
        values_BS = batch.events[name].clone()
        values = values_BS[there_BS]
        values_BS[there_BS] = values[torch.randperm(len(values), generator=draw)]
        return replace(batch, events=batch.events | {name: values_BS})

    return change


def _exchange_histories(batch: Batch, draw: torch.Generator) -> Batch:
    order_B = torch.randperm(len(batch), generator=draw)
    events = {name: values_BS[order_B] for name, values_BS in batch.events.items()}
    return replace(batch, history_BS=batch.history_BS[order_B], events=events)


def _table_column(side: str, name: str) -> ChangeTables:
    def change(tables: FrozenTables, draw: torch.Generator) -> FrozenTables:
        columns: dict[str, Tensor] = getattr(tables, side)
        order = order_among_real(len(columns[name]), draw)
        changed: dict[str, Any] = {side: columns | {name: columns[name][order]}}
        return replace(tables, **changed)

    return change


def _vector_set(name: str) -> ChangeTables:
    """Only the shuffled set is copied in memory."""

    def change(tables: FrozenTables, draw: torch.Generator) -> FrozenTables:
        return tables.with_vectors_moved(order_among_real(len(tables.present[name]), draw), [name])

    return change
