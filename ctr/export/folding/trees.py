"""The trees of a model in a serving graph: what they read comes from the item table, and they are one node in ONNX.

Shapes: N candidates, I width of what trees read of an item, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any, NamedTuple

import numpy as np
import torch
from onnxscript import opset20
from onnxscript.values import Opset
from torch import Tensor, nn

from ctr.export.folding.item_columns import ItemColumns, Pair, Past
from ctr.history.target_history import TargetHistory
from ctr.trees.ensemble import Ensemble
from ctr.trees.model_trees import ModelTrees

TREES = Opset("ai.onnx.ml", 3)


class Compared(NamedTuple):
    """The first arguments of a `RequestHistory`, and of its like for several requests."""

    target: Tensor
    history: Tensor
    mask: Tensor
    columns: list[Tensor]
    events: None
    unit_vectors: list[Pair]
    indices: list[Pair]


class FoldedTrees(nn.Module):
    """The trees of a model, which read rows of the item table.

    Args:
        trees: grown.
    """

    share: Tensor

    def __init__(self, trees: ModelTrees) -> None:
        super().__init__()
        self.features = trees.features
        self.ensemble = deepcopy(trees.ensemble).eval()
        self.reads_user_id = trees.reads_user_id
        self.register_buffer("share", trees.share.detach().clone())

    def compared(self, target: ItemColumns, past: Past) -> Compared:
        """The first arguments of a history, in the precision that features are made in: its items are their numbers."""
        assert target.of_trees is not None and past.items.of_trees is not None
        ours, theirs = (self.features.item_numbers(one) for one in (target.of_trees, past.items.of_trees))
        unit_vectors, indices = target.pairs(past.items, torch.float64)
        return Compared(ours, theirs, past.mask.double(), past.events, None, unit_vectors, indices)

    def forward(
        self,
        context: Sequence[Tensor],
        numbers: Sequence[Tensor],
        block_NI: Tensor | None,
        history: TargetHistory | None,
    ) -> Tensor:
        """Logits, float32 [N], of context columns [1] or [N], numbers of the candidates [N], and what trees read."""
        assert block_NI is not None
        # User columns come first, and of these the id, which trees do not read.
        first = int(self.reads_user_id)
        users = first + len(self.features.user_fields)
        features_NF = self.features(context[first:users], context[users:], numbers, block_NI, history)
        logit_N: Tensor = self.ensemble(features_NF)
        return logit_N


def tree_translation(graph: nn.Module) -> dict[Any, Callable[..., Any]]:
    """How the exporter writes the trees of a graph: as one `TreeEnsembleRegressor`; nothing for a graph without."""
    found = [module for module in graph.modules() if isinstance(module, Ensemble)]
    if not found:
        return {}
    (ensemble,) = found
    attributes = tree_attributes(ensemble)

    def one_node(rows_RF: Any, *_: Any) -> Any:
        logit_R1 = TREES.TreeEnsembleRegressor(rows_RF, **attributes)
        return opset20.Squeeze(logit_R1, opset20.Constant(value_ints=[1]))

    return {torch.ops.quadrank.tree_logits.default: one_node}


def tree_attributes(ensemble: Ensemble) -> dict[str, Any]:
    """The attributes of a `TreeEnsembleRegressor` that gives the logits of an ensemble; one tree at least."""
    columns = (ensemble.feature, ensemble.threshold, ensemble.missing_left, ensemble.left, ensemble.right)
    feature_TM, threshold_TM, missing_TM, left_TM, right_TM = (one.cpu().numpy() for one in columns)
    value_TM, nodes = ensemble.value.cpu().numpy(), np.arange(ensemble.feature.shape[1])
    # An ensemble without trees has one of a single leaf, of value 0.
    there = [
        (tree, node) for tree in range(max(1, int(ensemble.used))) for node in _nodes(left_TM[tree], right_TM[tree])
    ]
    tree_P, node_P = (np.array(column, np.int64) for column in zip(*there, strict=True))
    at = (tree_P, node_P)
    leaf_P = left_TM[at] == nodes[node_P]
    return {
        "n_targets": 1,
        "base_values": [float(ensemble.baseline)],
        "nodes_treeids": tree_P.tolist(),
        "nodes_nodeids": node_P.tolist(),
        "nodes_featureids": feature_TM[at].astype(np.int64).tolist(),
        "nodes_values": threshold_TM[at].tolist(),
        "nodes_modes": ["LEAF" if leaf else "BRANCH_LEQ" for leaf in leaf_P],
        # A leaf has no children.
        "nodes_truenodeids": np.where(leaf_P, 0, left_TM[at]).astype(np.int64).tolist(),
        "nodes_falsenodeids": np.where(leaf_P, 0, right_TM[at]).astype(np.int64).tolist(),
        "nodes_missing_value_tracks_true": missing_TM[at].astype(np.int64).tolist(),
        "target_treeids": tree_P[leaf_P].tolist(),
        "target_nodeids": node_P[leaf_P].tolist(),
        "target_ids": [0] * int(leaf_P.sum()),
        "target_weights": value_TM[at][leaf_P].tolist(),
    }


def _nodes(left_M: np.ndarray, right_M: np.ndarray) -> list[int]:
    """The nodes of a tree that a walk from its root can reach, ascending."""
    found, waiting = set[int](), [0]
    while waiting:
        node = waiting.pop()
        found.add(node)
        waiting += {int(left_M[node]), int(right_M[node])} - found
    return sorted(found)
