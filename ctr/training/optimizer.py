"""Adam with L2 on the parameters that the model names, and the learning rate."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from ctr.config import TrainConfig, WarmStartConfig

# Plateau: evaluations without improvement before each halving.
EVALUATIONS_BEFORE_HALVING = 2


def make_optimizer(model: nn.Module, config: TrainConfig, trainable: Sequence[nn.Parameter]) -> torch.optim.Adam:
    """Adam over these parameters of a model, those of `model.regularized_parameters()` with L2.

    The L2 is part of the gradient, `g + λ w`, that of a loss term `λ/2 ||w||²` (arXiv 2504.17699).
    """
    regularized = {id(parameter) for parameter in model.regularized_parameters()}  # type: ignore[operator]
    groups = [
        {"params": [p for p in trainable if id(p) in regularized], "weight_decay": config.embedding_l2},
        {"params": [p for p in trainable if id(p) not in regularized], "weight_decay": 0.0},
    ]
    filled = [group for group in groups if group["params"]]
    # Fused: one pass over the embedding tables a step, and it honours the mark of `StepGuard`.
    return torch.optim.Adam(filled, lr=config.learning_rate, fused=True)


def learning_rate(config: TrainConfig, step: int, steps: int, halvings: int) -> float:
    """Learning rate of step `step` (from 0) of `steps`, after `halvings` halvings at plateaus.

    `cosine` falls from `config.learning_rate` to 0 over the run, `plateau` is halved, `constant` stays.
    """
    if config.schedule == "cosine":
        return config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0)))
    if config.schedule == "plateau":
        return config.learning_rate * 0.5**halvings
    return config.learning_rate


def rewarmed(config: WarmStartConfig, step: int) -> float:
    """Share of the learning rate at step `step` (from 0) of a warm start: `rate`, risen to over `rewarm_steps`."""
    return config.rate * min(1.0, (step + 1) / max(config.rewarm_steps, 1))
