"""Adam with L2 on the parameters that the model names, the learning rate, and the guard against non-finite steps."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ctr.config import TrainConfig
from features.errors import NumericalError

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
    # Fused: one pass over the embedding tables a step, and it honours the guard's mark below.
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


class FiniteGuard:
    """Keeps NaN and infinity out of the weights without making the CPU wait for the device.

    `watch` goes between gradient and optimizer step. From the first loss or gradient norm that is not
    finite on, it marks the optimizer so that no step changes a weight; `check`, at the next logging step,
    raises. Call `check` before anything is written to disk. `marked` is 1 from then on, for other optimizers.

    Args:
        optimizer: a fused one: it skips a step while its `found_inf` is 1, the way `torch.amp.GradScaler`
            makes it.
        device: where losses and gradients are.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self._optimizer = optimizer
        self.marked = torch.zeros((), device=device)
        self._first = torch.full((3,), -1.0, dtype=torch.float64, device=device)

    def watch(self, step: int, loss: Tensor, norm: Tensor) -> None:
        """Note the loss and gradient norm (scalars) of this step, before the optimizer takes it."""
        bad = ~(torch.isfinite(loss) & torch.isfinite(norm))
        fresh = bad & (self.marked == 0)
        here = torch.stack([torch.full_like(self._first[0], step), loss.detach().double(), norm.double()])
        self._first = torch.where(fresh, here, self._first)
        self.marked = torch.maximum(self.marked, bad.float())
        self._optimizer.found_inf = self.marked  # type: ignore[attr-defined]

    def check(self, rate: float) -> None:
        """Raise NumericalError if a step since the start was not finite; `rate` is the learning rate."""
        if not self.marked.item():
            return
        step, loss, norm = self._first.tolist()
        raise NumericalError(
            f"step {step:.0f}: not finite: loss {loss:.4g}, gradient norm {norm:.4g}, learning rate "
            f"{rate:.3g}. Training stopped before this reached the weights; nothing was overwritten, and the "
            "last checkpoint, if there is one, stands. Lower train.learning_rate or train.clip_norm and "
            "continue with --resume. If it comes back at once, look for extreme values in numeric columns "
            "and item vectors."
        )
