"""Every reader and every tower goes through ONNX: the same scores for every length of history and of candidates."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ctr.export.onnx_export import export_request_graph
from ctr.export.parity import expected, grid_requests
from ctr.export.serving_graph import RequestGraph
from ctr.serving.ranker import graph_inputs, open_session
from features.store.schema import Schema
from tests.ctr import small_world

PARTS: list[dict[str, Any]] = [
    {"attention": "none", "evidence_heads": 3, "match_features": True, "vector_gate": True},
    {"layers": 3},
    {"attention": "sparse", "tower": "mlp", "hidden": (6, 4)},
    {"attention": "din", "tower": "cross", "hidden": (6,)},
    {"attention": "transformer", "tower": "factorized", "hidden": (6,), "tasks": ("like",)},
    {"attention": "mean", "tower": "two_streams", "hidden": (6, 4), "tasks": ("like",)},
    {"use_history": False, "tower": "linear", "tasks": ("like",)},
    {"base": "boosting", "tower": "none"},
    {"base": "boosting", "tower": "none", "use_history": False, "use_user_id": True},
    {"base": "boosting", "attention": "none", "evidence_heads": 2, "tasks": ("like",), "use_user_id": True},
    {"tasks": ("like", "long view"), "match_features": True, "cross_cells": 40},
]


@pytest.mark.parametrize("settings", PARTS, ids=str)
def test_onnx_scores_as_torch_does(tmp_path, settings: dict[str, Any], caplog: pytest.LogCaptureFixture):
    require_parity(tmp_path, small_world.SCHEMA, settings)
    warned = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert warned == []  # such as of a constant that is not folded


def test_trees_score_items_without_columns_and_vectors(tmp_path):
    bare = small_world.SCHEMA.model_copy(update={"item": small_world.SCHEMA.item[:1], "vectors": ()})
    require_parity(tmp_path, bare, {"base": "boosting", "tower": "none"})


def require_parity(tmp_path: Path, schema: Schema, settings: dict[str, Any]) -> None:
    model = small_world.model(torch.float32, schema, **settings).eval()
    users = {name: values.numpy() for name, values in small_world.tables().users.items()}
    graph = RequestGraph(model)
    export_request_graph(graph, schema, tmp_path / "ranker.onnx")
    session = open_session(tmp_path / "ranker.onnx")
    cases = list(grid_requests(schema))
    assert {len(case.history_item) for case in cases} >= {0, 1, 3, 6}
    for case in cases:
        inputs = graph_inputs(case.encoded(schema, users))
        scores = session.run(list(graph.output_names), {name: inputs[name] for name in graph.input_names})
        np.testing.assert_allclose(np.stack(scores, axis=-1), expected(model, case), atol=1e-5)
