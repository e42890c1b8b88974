from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.export import Dim

from ctr.export import serving_graph as fold
from ctr.export.serving_graph import ItemGraph, RequestGraph
from ctr.model.click_model import ClickModel
from tests.ctr import small_world
from tests.ctr.small_world import ITEMS, SCHEMA, in_dtype, with_many_tags

CASES = {
    "long history": ([3, 9, 1, 4, 4, 29], [5, 1, 28, 3]),
    "one event, one candidate": ([7], [7]),
    "unknown items only": ([1, 1], [1, 1, 1]),
    "padded in front": ([0, 0, 8, 2], [2, 3]),
    "padding only": ([0, 0, 0], [4, 5]),
    "no history": ([], [4, 5, 6]),
}


# Of models; the scoring graph is held to all of them too.
SETTINGS: list[dict[str, Any]] = [
    {},
    {"use_user_id": True, "layers": 1},
    {"use_history": False, "layers": 3, "merge_rows": True},
    {"attention": "none", "evidence_heads": 3, "match_features": True},
    {"evidence_heads": 1, "vector_gate": True, "modality_dropout": 0.2},
    {"tower": "mlp", "hidden": (6, 4)},
    {"attention": "din", "tower": "cross", "hidden": (6,)},
    {"attention": "transformer", "tower": "factorized", "hidden": (6,)},
    {"attention": "mean", "tower": "two_streams", "hidden": (6, 4)},
    {"attention": "mean", "tower": "linear"},
    {"tasks": ("like", "long view")},
    {"cross_cells": 40, "evidence_heads": 2},
    {"cross_cells": 40, "use_history": False},
    {"base": "boosting", "tower": "none"},
    {"base": "boosting", "tower": "none", "use_history": False},
    {"base": "boosting", "cross_cells": 40, "use_user_id": True, "tasks": ("like",)},
]
# All that compares items value by value, besides by vectors.
COMPARED: dict[str, Any] = {
    "attention": "none",
    "evidence_heads": 3,
    "match_features": True,
    "schema": with_many_tags(),
}
CANDIDATE = ("candidate_rate", "candidate_count", "candidate_item")


def evaluated(model: ClickModel, history: list[int], candidates: list[int]) -> tuple[Tensor, dict[str, Tensor]]:
    """The model's own probabilities [N, H] of one request as a batch, and the same request as graph inputs."""
    dtype = model.calibrator.slope.dtype
    target = torch.tensor(candidates)
    histories = torch.tensor(history, dtype=torch.int64).expand(len(candidates), -1)
    batch = in_dtype(small_world.batch(target, histories), dtype)
    # One user in one context: every row takes what the first row drew.
    batch = replace(
        batch,
        user_B=batch.user_B[:1].expand(len(target)),
        context={name: values[:1].expand(len(target)) for name, values in batch.context.items()},
        events={name: values[:1].expand(len(target), -1) for name, values in batch.events.items()},
    )
    users = small_world.tables().users
    inputs = {f"user_{name}": values[batch.user_B[:1]] for name, values in users.items()}
    inputs |= {f"context_{name}": values[:1] for name, values in batch.context.items()}
    inputs |= {f"history_{name}": values[0] for name, values in batch.events.items()}
    inputs |= {f"candidate_{name}": values for name, values in batch.candidate.items()}
    inputs |= {"history_item": torch.tensor(history, dtype=torch.int64), "candidate_item": target}
    with torch.no_grad():
        outputs = model.eval().outputs(batch)
        return torch.sigmoid(torch.stack([outputs.click_B, *outputs.tasks.values()], dim=-1)), inputs


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-6), (torch.float64, 1e-10)])
def test_scores_equal_the_model(case: str, settings: dict, dtype: torch.dtype, tolerance: float):
    model = small_world.model(dtype, **settings)
    expected, inputs = evaluated(model, *CASES[case])
    graph = RequestGraph(model)
    scores = torch.stack(graph(*(inputs[name] for name in graph.input_names)), dim=-1)
    torch.testing.assert_close(scores, expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_tags_that_are_looked_up_give_the_scores_of_the_model(case: str):
    model = small_world.model(**COMPARED)
    assert model.spaces is not None and model.spaces.sizes == (100, 6)
    expected, inputs = evaluated(model, *CASES[case])
    graph = RequestGraph(model)
    scores = torch.stack(graph(*(inputs[name] for name in graph.input_names)), dim=-1)
    torch.testing.assert_close(scores, expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("settings", [{}, {"attention": "din", "tower": "mlp", "hidden": (6,)}], ids=str)
def test_no_slope_is_left_to_be_read_for_each_number(settings: dict):
    model = small_world.model(**settings)
    assert any(isinstance(one, torch.nn.PReLU) for one in model.modules())
    assert not any(isinstance(one, torch.nn.PReLU) for one in RequestGraph(model).modules())


def test_padding_contributes_nothing_even_with_an_event_on_it():
    model = small_world.model()
    _, inputs = evaluated(model, [8], [2, 3])
    graph = RequestGraph(model)
    expected = torch.stack(graph(*(inputs[name] for name in graph.input_names)), dim=-1)
    zeros, label = torch.zeros(2, dtype=torch.int64), inputs["history_label"]
    inputs["history_item"] = torch.cat([zeros, inputs["history_item"]])
    inputs["history_label"] = torch.cat([torch.tensor([1, 3]), label])
    inputs["history_residual"] = torch.cat([torch.tensor([0.5, -2.0]), inputs["history_residual"]])
    scores = torch.stack(graph(*(inputs[name] for name in graph.input_names)), dim=-1)
    torch.testing.assert_close(scores, expected, atol=1e-12, rtol=0)


def test_scores_differ_between_candidates_and_follow_the_history():
    model = small_world.model()
    scores, _ = evaluated(model, *CASES["long history"])
    without, _ = evaluated(model, [], CASES["long history"][1])
    assert scores.std() > 1e-2 and (scores - without).abs().max() > 1e-2


def test_without_any_context_the_graph_has_item_inputs_only():
    schema = SCHEMA.model_copy(update={"user": SCHEMA.user[:1], "context": ()})
    model = small_world.model(schema=schema)
    expected, inputs = evaluated(model, *CASES["long history"])
    graph = RequestGraph(model)
    assert graph.input_names == ("history_item", "history_label", "history_residual", *CANDIDATE)
    scores = torch.stack(graph(*(inputs[name] for name in graph.input_names)), dim=-1)
    torch.testing.assert_close(scores, expected, atol=1e-10, rtol=0)


def test_inputs_are_what_the_model_reads_in_a_fixed_order():
    context = ("user_likes", "user_age", "context_age", "context_load")
    history = ("history_item", "history_label", "history_residual")
    assert RequestGraph(small_world.model()).input_names == (*context, *history, *CANDIDATE)
    control = RequestGraph(small_world.model(use_history=False, use_user_id=True))
    assert control.input_names == ("user_user_id", *context, *CANDIDATE)


def test_the_item_table_is_built_in_chunks_and_its_padding_row_is_zeros(monkeypatch: pytest.MonkeyPatch):
    model = small_world.model()
    monkeypatch.setattr(fold, "ITEMS_PER_CHUNK", 7)
    table = fold.item_table(model)
    torch.testing.assert_close(table, model.item_rows(torch.arange(ITEMS)), atol=1e-12, rtol=0)
    assert torch.equal(table[0], torch.zeros_like(table[0])) and not table.requires_grad


def test_the_graph_is_a_copy_that_later_training_does_not_reach():
    model = small_world.model()
    _, inputs = evaluated(model, *CASES["long history"])
    graph = RequestGraph(model)
    arguments = [inputs[name] for name in graph.input_names]
    (before,) = graph(*arguments)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert torch.equal(graph(*arguments)[0], before)
    assert not [p for p in graph.parameters() if p.requires_grad]


def test_new_items_get_the_rows_the_table_would_hold():
    model = small_world.model()
    graph = ItemGraph(model)
    assert graph.input_names == (
        *("item_item_id", "item_item.tags", "item_type", "item_price", "item_maker"),
        *("vector_text", "vector_image", "present_text", "present_image"),
    )
    rows = torch.arange(1, ITEMS)
    tables = model.tables
    x = graph(*tables.item_columns(rows), *tables.vectors(rows), *tables.present(rows))
    torch.testing.assert_close(x, RequestGraph(model).item_table[1:], atol=1e-12, rtol=0)


def test_both_graphs_export_with_no_frozen_size():
    model = small_world.model(torch.float32)
    _, inputs = evaluated(model, [3, 9, 1, 4, 8], [5, 1, 28])
    graph = RequestGraph(model)
    events, candidates, items = Dim("H", min=0), Dim("N", min=1), Dim("M", min=1)
    shapes = tuple(
        {0: events} if name.startswith("history_") else {0: candidates} if name.startswith("candidate_") else {}
        for name in graph.input_names
    )
    # torch.export refuses a named dimension that the code froze to the example's size.
    program = torch.export.export(graph, tuple(inputs[n] for n in graph.input_names), dynamic_shapes=(shapes,))
    expected, inputs = evaluated(model, [], [4])
    scores = torch.stack(program.module()(*(inputs[name] for name in graph.input_names)), dim=-1)
    torch.testing.assert_close(scores, expected, atol=1e-6, rtol=0)

    rows = torch.arange(1, 6)
    columns = (*model.tables.item_columns(rows), *model.tables.vectors(rows), *model.tables.present(rows))
    torch.export.export(ItemGraph(model), columns, dynamic_shapes=(tuple({0: items} for _ in columns),))
