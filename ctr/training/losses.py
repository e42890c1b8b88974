"""What training minimises: the log loss of clicks, weighted by row, and that of further labels.

Shapes: B rows.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ctr.config import TrainConfig
from ctr.data.batch import Batch
from ctr.model.outputs import Outputs


def weighted_log_loss(logit_B: Tensor, label_B: Tensor, weight_B: Tensor) -> Tensor:
    """Weighted mean log loss in nats, computed from logits so that sure predictions stay finite.

        -Σ w (y log p + (1 - y) log(1 - p)) / Σ w,    p = sigmoid(logit)

    Args:
        logit_B: any finite numbers, [B].
        label_B: 0 or 1, [B].
        weight_B: not negative, [B]. A batch of zero weights has loss 0 and moves nothing.

    Returns:
        A scalar.
    """
    loss_B = F.binary_cross_entropy_with_logits(logit_B, label_B.to(logit_B.dtype), reduction="none")
    smallest = torch.finfo(logit_B.dtype).tiny
    return (weight_B * loss_B).sum() / weight_B.sum().clamp_min(smallest)


def task_loss(logit_B: Tensor, label_B: Tensor, weight_B: Tensor) -> Tensor:
    """`weighted_log_loss` over the rows whose label is known (not NaN)."""
    known_B = ~torch.isnan(label_B)
    return weighted_log_loss(logit_B, torch.where(known_B, label_B, 0), weight_B * known_B)


def training_loss(outputs: Outputs, batch: Batch, config: TrainConfig) -> Tensor:
    """The loss of a batch: log loss of the click, plus `Σ_t task_weights_t · task_loss_t`.

    Args:
        outputs: logits of the batch.
        batch: labels and weights.
        config: weights of the tasks; 1 where it names none.
    """
    loss = weighted_log_loss(outputs.click_B.float(), batch.label_B, batch.weight_B)
    for name, logit_B in outputs.tasks.items():
        weight = config.task_weights.get(name, 1.0)
        loss = loss + weight * task_loss(logit_B.float(), batch.labels[name], batch.weight_B)
    return loss


def click_loss(outputs: Outputs, batch: Batch) -> Tensor:
    """The log loss of the click alone, without gradient: comparable with that of other rows.

    It is of a forward pass in training, so dropout is in it.
    """
    return weighted_log_loss(outputs.click_B.detach().float(), batch.label_B, batch.weight_B)
