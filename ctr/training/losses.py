"""What training minimises: the log loss of clicks, weighted by row, that of further labels, and that of whole lists.

Shapes: B rows, L lists, W batches of a step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from ctr.config import TrainConfig
from ctr.data.batch import Batch
from ctr.model.outputs import Outputs

LEAST_MEAN = 1e-6  # a mean label nearer to 0 or 1 is this: its logit would be infinite


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


def list_loss(logit_B: Tensor, label_B: Tensor, weight_B: Tensor, list_B: Tensor) -> Tensor:
    """Softmax cross-entropy over the candidates of each list, a weighted mean over the lists with both labels.

        -Σ_q w_q Σ_i∈q y_i log(exp(s_i) / Σ_j∈q exp(s_j)) / Σ_i∈q y_i / Σ_q w_q,    w_q the mean weight of its rows

    It compares the candidates of a list alone: one number added to all of their logits changes nothing.
    (ListNet's top-one cross-entropy: Cao et al., Learning to Rank, ICML 2007.)

    Args:
        logit_B: any finite numbers s, [B].
        label_B: 0 or 1, [B].
        weight_B: not negative, [B].
        list_B: the list of each row, from 0 and below B, [B].

    Returns:
        A scalar; 0 where no list has both labels.
    """
    rows, index_B, dtype = len(logit_B), list_B.long(), logit_B.dtype

    def sums(values_B: Tensor) -> Tensor:
        return torch.zeros(rows, dtype=dtype, device=logit_B.device).index_add(0, index_B, values_B.to(dtype))

    rows_L, positives_L = sums(torch.ones_like(logit_B)), sums(label_B)
    is_judged_L = (positives_L > 0) & (positives_L < rows_L)
    # So that no exponential overflows; the loss does not depend on what is taken away.
    highest_L = torch.zeros(rows, dtype=dtype, device=logit_B.device).scatter_reduce(
        0, index_B, logit_B.detach(), "amax", include_self=False
    )
    below_B = logit_B - highest_L[index_B]
    total_L = torch.where(is_judged_L, sums(below_B.exp()), 1).log()
    mean_L = sums(label_B.to(dtype) * below_B) / positives_L.clamp_min(1)
    weight_L = is_judged_L * sums(weight_B) / rows_L.clamp_min(1)
    return (weight_L * (total_L - mean_L)).sum() / weight_L.sum().clamp_min(torch.finfo(dtype).tiny)


@dataclass(frozen=True)
class Share:
    """What part a batch is of the batches of one step, so that its means add up to those over all rows of the step.

    Args:
        rows: its weight over that of all batches.
        known: the same of the rows whose further label is known, by label.
    """

    rows: Tensor | float = 1.0
    known: Mapping[str, Tensor] = field(default_factory=dict)


def shares(batches: Sequence[Batch]) -> list[Share]:
    """The share of each batch of a step."""
    if len(batches) == 1:
        return [Share()]
    of_rows = _parts([batch.weight_B for batch in batches])
    of_known = {
        name: _parts([batch.weight_B * ~torch.isnan(batch.labels[name]) for batch in batches])
        for name in batches[0].labels
    }
    return [
        Share(part, {name: parts[number] for name, parts in of_known.items()}) for number, part in enumerate(of_rows)
    ]


def _parts(weights: Sequence[Tensor]) -> list[Tensor]:
    sums_W = torch.stack([weight_B.sum() for weight_B in weights])
    return list(sums_W / sums_W.sum().clamp_min(torch.finfo(torch.float32).tiny))


def training_loss(outputs: Outputs, batch: Batch, config: TrainConfig, share: Share | None = None) -> Tensor:
    """The loss of a batch: log loss of the click, plus `Σ_t task_weights_t · task_loss_t` and a share of `list_loss`.

    Args:
        outputs: logits of the batch.
        batch: labels and weights, and with `config.list_loss` the lists.
        config: weights of the tasks, 1 where it names none, and of the lists.
        share: of the step that the batch is; none means that it is the whole step.
    """
    share = share or Share()
    loss = weighted_log_loss(outputs.click_B.float(), batch.label_B, batch.weight_B) * share.rows
    for name, logit_B in outputs.tasks.items():
        weight = config.task_weights.get(name, 1.0) * share.known.get(name, 1.0)
        loss = loss + weight * task_loss(logit_B.float(), batch.labels[name], batch.weight_B)
    if config.list_loss:
        assert batch.list_B is not None, "a loader by request numbers the lists of a batch"
        of_lists = list_loss(outputs.click_B.float(), batch.label_B, batch.weight_B, batch.list_B)
        loss = loss + config.list_loss * share.rows * of_lists
    return loss


@torch.no_grad()
def mean_label_loss(outputs: Outputs, batch: Batch, config: TrainConfig, share: Share | None = None) -> Tensor:
    """The `training_loss` of one who knows the mean label of these rows alone, and so ranks all candidates alike.

    It says how much loss the labels of a batch account for: hardly any where all are 0, more with each rare positive.
    """
    weight_B = batch.weight_B
    tasks = {name: _mean_logit(batch.labels[name], weight_B) for name in outputs.tasks}
    return training_loss(Outputs(_mean_logit(batch.label_B, weight_B), tasks), batch, config, share)


def _mean_logit(label_B: Tensor, weight_B: Tensor) -> Tensor:
    """The logit of the weighted mean of the labels that are known, at each row, [B]; finite also at 0 and 1."""
    known_B = ~torch.isnan(label_B)
    mass_B = weight_B * known_B
    mean = (mass_B * torch.where(known_B, label_B, 0)).sum() / mass_B.sum().clamp_min(torch.finfo(mass_B.dtype).tiny)
    return torch.logit(mean, eps=LEAST_MEAN).expand_as(label_B)


def click_loss(outputs: Outputs, batch: Batch) -> Tensor:
    """The log loss of the click alone, without gradient: comparable with that of other rows.

    It is of a forward pass in training, so dropout is in it.
    """
    return weighted_log_loss(outputs.click_B.detach().float(), batch.label_B, batch.weight_B)
