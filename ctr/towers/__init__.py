"""Towers: from the concatenated features of a row to its logits. One file each; `make_tower` chooses by the config."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ctr.config import ModelConfig
from ctr.towers.dcnv2 import CrossNetwork
from ctr.towers.deepfm import FactorizedNetwork
from ctr.towers.finalmlp import TwoStreams
from ctr.towers.logistic import LinearTower
from ctr.towers.mlp import MlpTower
from ctr.towers.quadratic import QuadraticNetwork


def make_tower(config: ModelConfig, widths: Sequence[int]) -> nn.Module:
    """A fresh tower, `forward(z [B, X]) -> logits [B, H]`: one of a click, and one of each further task of the config.

    Args:
        config: its kind, which is not `none`, and sizes.
        widths: of the blocks that z is made of, in order; they sum to X.
    """
    width, heads = sum(widths), 1 + len(config.tasks)
    match config.tower:
        case "quadratic":
            return QuadraticNetwork(width, config.layers, config.rows, config.dropout, config.merge_rows, heads)
        case "linear":
            return LinearTower(width, heads)
        case "mlp":
            return MlpTower(width, config.hidden, config.dropout, heads)
        case "factorized":
            return FactorizedNetwork(widths, config.embedding_dim, config.hidden, config.dropout, heads)
        case "cross":
            return CrossNetwork(width, config.layers, config.hidden, config.dropout, heads)
        case "two_streams":
            return TwoStreams(width, config.hidden, config.dropout, heads)
        case "none":
            raise ValueError("tower: none has no tower to make")
