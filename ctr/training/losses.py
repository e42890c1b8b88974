"""What training minimises: the log loss of clicks, weighted by row, and what can be added to it.

Shapes: B rows, E width of a user's two embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ctr.config import TrainConfig
from ctr.data.batch import Batch
from ctr.model.outputs import Outputs

TEMPERATURE = 0.1  # of the cosines that tell users apart


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


def task_loss(logit_B: Tensor, label_B: Tensor, weight_B: Tensor) -> Tensor:
    """`weighted_log_loss` over the rows whose label is known (not NaN)."""
    known_B = ~torch.isnan(label_B)
    return weighted_log_loss(logit_B, torch.where(known_B, label_B, 0), weight_B * known_B)


def alignment_loss(content_BE: Tensor, ids_BE: Tensor, user_B: Tensor) -> Tensor:
    """Tell each user among those of the batch, from what their past says in content by what it says in ids, and back.

        l = -mean_b [log softmax_b'(cos(c_b, i_b') / T)_b + log softmax_b'(cos(i_b, c_b') / T)_b] / 2,    T = 0.1

    (InfoNCE, as Molar aligns content-based with id-based users, arXiv 2412.18176.) Ids learn from content what few
    clicks do not tell. Other rows of the same user are left out; a row without a past is zeros and counts nowhere.

    Args:
        content_BE, ids_BE: [B, E].
        user_B: user rows; the unknown user is one user.
    """
    there_B = (content_BE.abs().sum(dim=1) > 0) & (ids_BE.abs().sum(dim=1) > 0)
    cosine_BB = F.normalize(content_BE, dim=-1) @ F.normalize(ids_BE, dim=-1).T / TEMPERATURE
    same_BB = user_B.unsqueeze(1) == user_B
    itself_BB = torch.eye(len(user_B), dtype=torch.bool, device=user_B.device)
    hidden_BB = (same_BB & ~itself_BB) | ~there_B
    cosine_BB = cosine_BB.masked_fill(hidden_BB & ~itself_BB, -1e9)
    both_B = (
        cosine_BB.log_softmax(dim=1).diagonal()
        + cosine_BB.T.masked_fill(hidden_BB & ~itself_BB, -1e9).log_softmax(dim=1).diagonal()
    )
    return -(both_B * there_B).sum() / there_B.sum().clamp_min(1) / 2


def training_loss(passes: Sequence[Outputs], batch: Batch, config: TrainConfig) -> Tensor:
    """The loss of a batch: log loss of the click, with the terms that `config` asks for.

        labels y become y (1 - 2 s) + s                                                   label_smoothing s
        + Σ_t task_weights_t · task_loss_t
        + pairwise · pairwise_loss
        + alignment · alignment_loss
        two passes with other dropout: + self_ensemble · mean (p_k - (p_1 + p_2) / 2)²     (QNN-alpha, arXiv 2505.17999)

    Args:
        passes: each forward pass: two of them for `self_ensemble`, else one.
        batch: labels and weights.
        config: smoothing and weights of the terms.
    """
    loss = torch.stack([_loss_of_a_pass(one, batch, config) for one in passes]).mean()
    if config.self_ensemble:
        probability_PB = torch.sigmoid(torch.stack([one.click_B for one in passes]))
        spread = (probability_PB - probability_PB.mean(dim=0)).square().mean()
        loss = loss + config.self_ensemble * spread
    return loss


def click_loss(passes: Sequence[Outputs], batch: Batch) -> Tensor:
    """The part of `training_loss` that is comparable with a log loss of other rows: of the click, labels as they are.

    Without gradient; the mean over passes. Training's dropout is in it.
    """
    losses = [weighted_log_loss(one.click_B.detach().float(), batch.label_B, batch.weight_B) for one in passes]
    return torch.stack(losses).mean()


def _loss_of_a_pass(outputs: Outputs, batch: Batch, config: TrainConfig) -> Tensor:
    click_B, weight_B = outputs.click_B.float(), batch.weight_B
    target_B = batch.label_B * (1 - 2 * config.label_smoothing) + config.label_smoothing
    loss = weighted_log_loss(click_B, target_B, weight_B)
    for name, logit_B in outputs.tasks.items():
        loss = loss + config.task_weights.get(name, 1.0) * task_loss(logit_B.float(), batch.labels[name], weight_B)
    if config.pairwise:
        loss = loss + config.pairwise * pairwise_loss(click_B, batch.label_B, weight_B)
    if outputs.users is not None:
        content_BE, ids_BE = outputs.users
        loss = loss + config.alignment * alignment_loss(content_BE.float(), ids_BE.float(), batch.user_B)
    return loss
