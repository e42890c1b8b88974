"""What training minimises: the log loss of clicks, weighted by row, and what can be added to it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ctr.config import TrainConfig


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


def pairwise_loss(logit_B: Tensor, label_B: Tensor, weight_B: Tensor) -> Tensor:
    """Weighted mean of log(1 + exp(l_n - l_p)) over the pairs of a positive p and a negative n of the batch.

    (RankNet, Burges et al. 2005; as a term beside the log loss: Twitter's combined loss, arXiv 2305.12102.) It asks for
    the order alone and leaves the level to the log loss. A batch of one class has loss 0.

    Args:
        logit_B: [B].
        label_B: 0 or 1, [B].
        weight_B: not negative, [B]; a pair weighs the product.
    """
    positive_B, negative_B = weight_B * label_B, weight_B * (1 - label_B)
    weight_BB = positive_B.unsqueeze(1) * negative_B
    loss_BB = F.softplus(logit_B - logit_B.unsqueeze(1))
    smallest = torch.finfo(logit_B.dtype).tiny
    return (weight_BB * loss_BB).sum() / weight_BB.sum().clamp_min(smallest)


def training_loss(passes: Sequence[Tensor], label_B: Tensor, weight_B: Tensor, config: TrainConfig) -> Tensor:
    """The loss of a batch: log loss, with the terms that `config` asks for.

        labels y become y (1 - 2 s) + s                                                   label_smoothing s
        + pairwise · pairwise_loss
        two passes with other dropout: + self_ensemble · mean (p_k - (p_1 + p_2) / 2)²     (QNN-alpha, arXiv 2505.17999)

    Args:
        passes: logits [B] of each forward pass: two of them for `self_ensemble`, else one.
        label_B: 0 or 1.
        weight_B: not negative.
        config: smoothing and weights of the terms.
    """
    target_B = label_B * (1 - 2 * config.label_smoothing) + config.label_smoothing
    loss = torch.stack([weighted_log_loss(logit_B, target_B, weight_B) for logit_B in passes]).mean()
    if config.pairwise:
        terms = [pairwise_loss(logit_B, label_B, weight_B) for logit_B in passes]
        loss = loss + config.pairwise * torch.stack(terms).mean()
    if config.self_ensemble:
        probability_PB = torch.sigmoid(torch.stack(list(passes)))
        spread = (probability_PB - probability_PB.mean(dim=0)).square().mean()
        loss = loss + config.self_ensemble * spread
    return loss
