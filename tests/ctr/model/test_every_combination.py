"""Every reader of the history with every tower: one step in each precision by each table optimizer, then evaluation."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, product
from typing import Any

import pytest
import torch
from torch import Tensor

from ctr.config import ModelConfig, TrainConfig
from ctr.data.batch import Batch
from ctr.history.target_history import BatchHistory
from ctr.model.click_model import ClickModel
from ctr.training.train_step import TrainStep
from tests.ctr import small_world

CPU = torch.device("cpu")
RATE = 1e-3
ROWS = 40
# Largest difference of a logit, of its size where that is above 1, between runs of one step in the two precisions.
MOST_APART = 0.03

READERS: dict[str, dict[str, Any]] = {
    "sparse": {"attention": "sparse"},
    "din": {"attention": "din"},
    "mean": {"attention": "mean"},
    "transformer": {"attention": "transformer"},
    "evidence": {"attention": "none", "evidence_heads": 3, "evidence_values": 2, "vector_gate": True},
    "match": {"attention": "none", "match_features": True},
    "qin_plus": {
        "attention": "none",
        "evidence_heads": 3,
        "match_features": True,
        "vector_gate": True,
        "cross_cells": 100,
    },
    "no_history": {"use_history": False},
}
TOWERS: dict[str, dict[str, Any]] = {
    "quadratic": {"tower": "quadratic"},
    "merged": {"tower": "quadratic", "merge_rows": True},
    "linear": {"tower": "linear"},
    "mlp": {"tower": "mlp"},
    "factorized": {"tower": "factorized"},
    "cross": {"tower": "cross"},
    "two_streams": {"tower": "two_streams"},
}
OPTIMIZERS = ("adam", "lazy_adam", "rowwise_adagrad")
TASKS: dict[str, tuple[str, ...]] = {"click": (), "tasks": ("like", "long view")}


def batch() -> Batch:
    draw = torch.Generator().manual_seed(3)
    labels = {name: torch.randint(0, 2, (ROWS,), generator=draw).float() for name in small_world.SCHEMA.labels}
    labels["like"][::4] = torch.nan
    made = small_world.random_batch(ROWS)
    return replace(made, label_B=torch.randint(0, 2, (ROWS,), generator=draw).float(), labels=labels)


BATCH = batch()
# All of readers x towers, and with them all pairs with an optimizer and with tasks.
COMBINATIONS = [
    (reader, tower, OPTIMIZERS[(2 * r + t) % 3], list(TASKS)[(r + t) % 2])
    for (r, reader), (t, tower) in product(enumerate(READERS), enumerate(TOWERS))
]


def test_all_pairs_are_tried():
    axes = (READERS, TOWERS, OPTIMIZERS, TASKS)
    for one, other in combinations(range(4), 2):
        pairs = {(combination[one], combination[other]) for combination in COMBINATIONS}
        assert pairs == set(product(axes[one], axes[other]))


@pytest.fixture(autouse=True)
def _tables_move_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables of thirty items are large enough for the optimizers that move rows."""
    monkeypatch.setattr("ctr.training.train_step.SMALL_TABLE_ROWS", 3)


def new_model(reader: str, tower: str, tasks: str, seed: int = 1) -> ClickModel:
    torch.manual_seed(seed)
    settings = {"embedding_dim": 4, "vector_dim": 5, "attention_dim": 16, "rows": 3, "hidden": (12, 8), "dropout": 0.0}
    config = ModelConfig(**settings | READERS[reader] | TOWERS[tower], tasks=TASKS[tasks])
    model = ClickModel(config, small_world.SCHEMA)
    model.attach(small_world.tables())
    return model


def logits(model: ClickModel) -> Tensor:
    """In evaluation, of all heads, [H, B]."""
    model.eval()
    with torch.no_grad():
        outputs = model.outputs(BATCH)
    return torch.stack([outputs.click_B, *outputs.tasks.values()])


def stepped(model: ClickModel, precision: Any, table_optimizer: Any) -> float:
    """Take one step; returns its loss."""
    config = TrainConfig(precision=precision, table_optimizer=table_optimizer, embedding_l2=1e-4)
    model.train()
    return TrainStep(model, config, CPU)([BATCH], RATE, 0).item()


@pytest.mark.parametrize(("reader", "tower", "table_optimizer", "tasks"), COMBINATIONS)
def test_one_step_in_either_precision_and_an_evaluation(reader: str, tower: str, table_optimizer: str, tasks: str):
    exact, half = new_model(reader, tower, tasks), new_model(reader, tower, tasks)
    before = {name: parameter.detach().clone() for name, parameter in half.named_parameters()}
    loss = stepped(exact, "fp32", table_optimizer)
    assert stepped(half, "bf16", table_optimizer) == pytest.approx(loss, rel=0.01)
    for name, parameter in half.named_parameters():
        gradient = parameter - before[name] if parameter.grad is None else parameter.grad
        assert torch.isfinite(gradient).all(), name
        # What batch norm takes away again, a bias before it, may get zeros.
        assert gradient.any() or name.endswith(".bias"), f"{name}: nothing reached it"
    wanted, got = logits(exact), logits(half)
    assert ((got - wanted).abs() <= MOST_APART * wanted.abs().clamp(min=1)).all()
    # What training leaves is in the state dict and nowhere else.
    fresh = new_model(reader, tower, tasks, seed=2)
    fresh.load_state_dict(half.state_dict())
    assert torch.equal(logits(fresh), got)


@pytest.mark.parametrize("tower", TOWERS)
def test_logits_keep_single_precision_under_autocast(tower: str):
    model = new_model("mean", tower, "tasks").train()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model.outputs(BATCH)
    for logit_B in (outputs.click_B, *outputs.tasks.values()):
        assert logit_B.dtype == torch.float32
        assert not torch.equal(logit_B, logit_B.bfloat16().float())


@pytest.mark.parametrize("tower", TOWERS)
def test_a_model_of_items_alone_steps_in_half_precision(tower: str):
    """Without columns of users and requests, all that a tower gets is in half precision under autocast."""
    bare = {"user": small_world.SCHEMA.user[:1], "context": (), "candidate": ()}
    schema, made = small_world.SCHEMA.model_copy(update=bare), replace(BATCH, context={}, candidate={})
    losses = []
    for precision in ("fp32", "bf16"):
        torch.manual_seed(1)
        config = ModelConfig(embedding_dim=4, vector_dim=5, attention_dim=16, hidden=(12, 8), dropout=0.0)
        model = ClickModel(config.model_copy(update=TOWERS[tower]), schema)
        model.attach(small_world.tables())
        losses.append(TrainStep(model, TrainConfig(precision=precision), CPU)([made], RATE, 0).item())
    assert losses[1] == pytest.approx(losses[0], rel=0.01)


def test_masks_recency_and_counts_are_exact_in_half_precision():
    """300 events, of which half precision could count 256."""
    events = 300
    history_BS = torch.ones(1, events, dtype=torch.int32)
    history_BS[:, 0] = 0
    x_UD = torch.zeros(2, 4, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        past = BatchHistory(x_UD, torch.ones(1, dtype=torch.int32), history_BS, (), None)
        recency, counted = past.recency, past.mask.sum()
    assert past.mask.dtype == torch.float32
    assert counted.item() == events - 1
    torch.testing.assert_close(recency, torch.log1p(torch.arange(events).flip(0).float()), rtol=0, atol=0)
