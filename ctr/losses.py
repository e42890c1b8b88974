"""What training minimises: the log loss of clicks, weighted by row."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


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
