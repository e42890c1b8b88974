"""An ensemble of trees as tensors: saved with the model, evaluated in torch, written as one node in ONNX.

Shapes: R rows, F features, T trees, M nodes of a tree (a tree of L leaves has 2 L - 1).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

FLOATS = np.finfo(np.float32)


class Ensemble(nn.Module):
    """`baseline + Σ_t value_t[leaf of the row in tree t]`. Before it is set, it has no trees and gives 0.

    A row goes left where its feature is at most the node's threshold; where the feature is NaN, by the node's flag. A
    leaf is its own child, so that a walk that has arrived stays.

    Args:
        trees: most trees T.
        leaves: most leaves of a tree.
    """

    feature: Tensor
    threshold: Tensor
    missing_left: Tensor
    left: Tensor
    right: Tensor
    value: Tensor
    used: Tensor
    baseline: Tensor

    def __init__(self, trees: int, leaves: int) -> None:
        super().__init__()
        shape = (trees, 2 * leaves - 1)
        self.register_buffer("feature", torch.zeros(shape, dtype=torch.int32))
        self.register_buffer("threshold", torch.zeros(shape))
        self.register_buffer("missing_left", torch.zeros(shape, dtype=torch.bool))
        self.register_buffer("left", torch.zeros(shape, dtype=torch.int32))
        self.register_buffer("right", torch.zeros(shape, dtype=torch.int32))
        self.register_buffer("value", torch.zeros(shape))
        self.register_buffer("used", torch.zeros((), dtype=torch.int64))
        self.register_buffer("baseline", torch.zeros(()))

    def set(self, trees: Sequence[np.ndarray], baseline: float) -> None:
        """Take other trees.

        Args:
            trees: nodes of each, in the record type of scikit-learn's histogram boosting; node 0 is the root.
            baseline: the logit without trees.
        """
        for buffer in (self.feature, self.threshold, self.missing_left, self.left, self.right, self.value):
            buffer.zero_()
        for number, nodes in enumerate(trees):
            leaf = nodes["is_leaf"].astype(bool)
            own = np.arange(len(nodes))
            columns = (
                (self.feature, np.where(leaf, 0, nodes["feature_idx"])),
                (self.threshold, np.where(leaf, 0, single_precision(nodes["num_threshold"]))),
                (self.missing_left, np.where(leaf, False, nodes["missing_go_to_left"].astype(bool))),
                (self.left, np.where(leaf, own, nodes["left"])),
                (self.right, np.where(leaf, own, nodes["right"])),
                (self.value, np.where(leaf, nodes["value"], 0)),
            )
            for buffer, values in columns:
                buffer[number, : len(nodes)] = torch.from_numpy(values).to(buffer)
        self.used.fill_(len(trees))
        self.baseline.fill_(baseline)

    def forward(self, rows_RF: Tensor) -> Tensor:
        """Logits of rows, float32 [R]."""
        logit_R: Tensor = tree_logits(
            rows_RF,
            self.feature,
            self.threshold,
            self.missing_left,
            self.left,
            self.right,
            self.value,
            self.used,
            self.baseline,
        )
        return logit_R


def single_precision(threshold: np.ndarray) -> np.ndarray:
    """The largest float32 at or below each threshold: `x <= t` is then the same for every float32 x but infinity.

    A threshold of infinity, by which known numbers are told from missing ones, is the largest float32.
    """
    nearest = np.clip(threshold, FLOATS.min, FLOATS.max).astype(np.float32)
    lower = np.nextafter(nearest, np.float32(-np.inf))
    return np.where(nearest.astype(np.float64) <= threshold, nearest, lower)


@torch.library.custom_op("quadrank::tree_logits", mutates_args=())
def tree_logits(
    rows_RF: Tensor,
    feature_TM: Tensor,
    threshold_TM: Tensor,
    missing_left_TM: Tensor,
    left_TM: Tensor,
    right_TM: Tensor,
    value_TM: Tensor,
    used: Tensor,
    baseline: Tensor,
) -> Tensor:
    """The sums of an `Ensemble`, float32 [R], all trees walked at once; one operator, which ONNX has as one node."""
    trees, nodes = int(used), feature_TM.shape[1]
    root_T = torch.arange(trees, device=rows_RF.device) * nodes
    feature_P, left_P, right_P = (one[:trees].flatten().long() for one in (feature_TM, left_TM, right_TM))
    threshold_P, missing_left_P = threshold_TM[:trees].flatten(), missing_left_TM[:trees].flatten()
    place_RT = root_T.expand(len(rows_RF), trees)
    while True:
        value_RT = rows_RF.gather(1, feature_P[place_RT])
        goes_left = (value_RT <= threshold_P[place_RT]) | (value_RT.isnan() & missing_left_P[place_RT])
        next_RT = root_T + torch.where(goes_left, left_P[place_RT], right_P[place_RT])
        if torch.equal(next_RT, place_RT):
            break
        place_RT = next_RT
    sums_R = value_TM[:trees].flatten().double()[place_RT].sum(dim=1) + baseline.double()
    return sums_R.float()


@tree_logits.register_fake
def _(rows_RF: Tensor, *_: Tensor) -> Tensor:
    return rows_RF.new_empty(rows_RF.shape[0])
