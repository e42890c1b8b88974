"""Ensembles: by hand, against scikit-learn, and through ONNX Runtime."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.ensemble import HistGradientBoostingClassifier
from torch import nn

from ctr.export.folding.trees import tree_translation
from ctr.export.onnx_export import OPSET, quiet_exporter
from ctr.serving.ranker import open_session
from ctr.trees.ensemble import Ensemble, single_precision

NODES = np.dtype(
    [
        ("value", "<f8"),
        ("feature_idx", "<i8"),
        ("num_threshold", "<f8"),
        ("missing_go_to_left", "u1"),
        ("left", "<u4"),
        ("right", "<u4"),
        ("is_leaf", "u1"),
    ]
)
BY_HAND = [
    # Feature 1 at most 0.5, and missing: left, -1. Else feature 0 at most 2: 3; above, and missing: 5.
    [
        (0, 1, 0.5, 1, 1, 2, 0),
        (-1, 0, 0, 0, 0, 0, 1),
        (0, 0, 2.0, 0, 3, 4, 0),
        (3, 0, 0, 0, 0, 0, 1),
        (5, 0, 0, 0, 0, 0, 1),
    ],
    # Whatever is known goes left, 0.25; missing right, 8.
    [(0, 0, math.inf, 0, 1, 2, 0), (0.25, 0, 0, 0, 0, 0, 1), (8, 0, 0, 0, 0, 0, 1)],
]
ROWS = [
    ([0.0, 0.5], -1 + 0.25),
    ([2.0, 0.75], 3 + 0.25),
    ([2.5, 0.75], 5 + 0.25),
    ([math.nan, 0.75], 5 + 8),
    ([1.0, math.nan], -1 + 0.25),
    ([math.nan, math.nan], -1 + 8),
    ([3e38, -3e38], -1 + 0.25),
]


class Graph(nn.Module):
    def __init__(self, ensemble: Ensemble) -> None:
        super().__init__()
        self.ensemble = ensemble

    def forward(self, rows_RF: torch.Tensor) -> torch.Tensor:
        return self.ensemble(rows_RF)


def through_onnx(ensemble: Ensemble, rows: np.ndarray, path: Path) -> np.ndarray:
    graph, example = Graph(ensemble).eval(), torch.from_numpy(rows[:1]).repeat(3, 1)
    with quiet_exporter():
        torch.onnx.export(
            graph,
            (example,),
            str(path),
            dynamo=True,
            opset_version=OPSET,
            input_names=["rows"],
            dynamic_shapes=({0: torch.export.Dim("rows")},),
            custom_translation_table=tree_translation(graph),
            verbose=False,
        )
    session = open_session(path)
    return session.run(None, {"rows": rows})[0]


@pytest.fixture
def by_hand() -> Ensemble:
    ensemble = Ensemble(trees=4, leaves=3)
    ensemble.set([np.array(nodes, NODES) for nodes in BY_HAND], baseline=0.5)
    return ensemble


def test_scores_by_hand_with_missing_values_both_ways(by_hand, tmp_path):
    rows = np.array([row for row, _ in ROWS], np.float32)
    wanted = [0.5 + logit for _, logit in ROWS]
    assert by_hand(torch.from_numpy(rows)).tolist() == wanted
    np.testing.assert_allclose(through_onnx(by_hand, rows, tmp_path / "trees.onnx"), wanted, rtol=1e-6)


def test_before_it_is_set_it_gives_zero(tmp_path):
    ensemble, rows = Ensemble(trees=2, leaves=2), np.zeros((2, 3), np.float32)
    assert ensemble(torch.from_numpy(rows)).tolist() == [0, 0]
    assert through_onnx(ensemble, rows, tmp_path / "trees.onnx").tolist() == [0, 0]


def test_others_take_the_place_of_all_trees(by_hand):
    by_hand.set([np.array([(2.0, 0, 0, 0, 0, 0, 1)], NODES)], baseline=0)
    assert by_hand(torch.zeros(1, 2)).tolist() == [2.0] and not by_hand.value[1].any()


def test_thresholds_part_the_same_floats_in_single_precision():
    draw = np.random.default_rng(0)
    thresholds = np.concatenate([draw.normal(size=500), draw.normal(size=50) * 1e-30, [0.1, 0.5, 0.0, -0.1, 1e300]])
    single = single_precision(thresholds)
    assert single.dtype == np.float32
    near = thresholds.clip(-3e38, 3e38).astype(np.float32)
    below, above = np.nextafter(near, np.float32(-np.inf)), np.nextafter(near, np.float32(np.inf))
    for x in (below, near, above, np.nextafter(above, np.float32(np.inf))):
        assert ((x <= single) == (x.astype(np.float64) <= thresholds)).all()
    assert (single != near).any() and single_precision(np.array([np.inf]))[0] == np.finfo(np.float32).max


@pytest.fixture(scope="module")
def grown() -> tuple[HistGradientBoostingClassifier, Ensemble, np.ndarray]:
    draw = np.random.default_rng(1)
    rows = draw.normal(size=(3000, 5)).astype(np.float32)
    rows[draw.random(rows.shape) < 0.2] = np.nan
    rows[:, 4] = draw.integers(3, size=3000)  # few values
    logit = np.nan_to_num(rows[:, 0]) + 2 * np.isnan(rows[:, 1]) - np.nan_to_num(rows[:, 2]) * (rows[:, 4] == 1)
    labels = draw.random(3000) < 1 / (1 + np.exp(-logit))
    model = HistGradientBoostingClassifier(max_iter=60, max_leaf_nodes=8, early_stopping=False).fit(rows, labels)
    ensemble = Ensemble(trees=70, leaves=8)
    trees = [per_class[0].nodes for per_class in model._predictors]
    ensemble.set(trees, float(model._baseline_prediction.ravel()[0]))
    # Each threshold in place of its feature, and the floats beside it, in rows that are otherwise drawn.
    splits = np.concatenate([nodes[nodes["is_leaf"] == 0] for nodes in trees])
    edges = []
    for node in splits[np.isfinite(splits["num_threshold"])][:150]:
        at = np.float32(node["num_threshold"])
        for value in (np.nextafter(at, np.float32(-np.inf)), at, np.nextafter(at, np.float32(np.inf))):
            row = rows[draw.integers(3000)].copy()
            row[node["feature_idx"]] = value
            edges.append(row)
    assert (splits["missing_go_to_left"] == 1).any() and (splits["missing_go_to_left"] == 0).any()
    return model, ensemble, np.concatenate([rows, np.stack(edges), np.full((1, 5), np.nan, np.float32)])


def test_torch_and_onnx_score_as_scikit_learn_does(grown, tmp_path):
    model, ensemble, rows = grown
    wanted = model.decision_function(rows)
    np.testing.assert_allclose(ensemble(torch.from_numpy(rows)), wanted, rtol=0, atol=2e-6)
    found = through_onnx(ensemble, rows, tmp_path / "trees.onnx")
    np.testing.assert_allclose(found, wanted, rtol=0, atol=5e-6)
    np.testing.assert_allclose(1 / (1 + np.exp(-found)), model.predict_proba(rows)[:, 1], rtol=0, atol=2e-6)


def test_it_is_saved_and_read_as_tensors(grown, tmp_path):
    _, ensemble, rows = grown
    again = Ensemble(trees=70, leaves=8)
    again.load_state_dict(ensemble.state_dict())
    assert torch.equal(again(torch.from_numpy(rows)), ensemble(torch.from_numpy(rows)))
