"""What training minimises, by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ctr.config import TrainConfig
from ctr.data.batch import Batch
from ctr.model.outputs import Outputs
from ctr.training.losses import alignment_loss, click_loss, pairwise_loss, task_loss, training_loss, weighted_log_loss

NAN = float("nan")


def labelled(label: list[float], **labels: list[float]) -> Batch:
    """Rows of these labels, of weight 1, each of a user of its own."""
    rows = len(label)
    place = torch.arange(rows)
    return Batch(
        items_U=torch.zeros(1, dtype=torch.int64),
        target_B=torch.zeros(rows, dtype=torch.int64),
        history_BS=torch.zeros(rows, 0, dtype=torch.int64),
        user_B=place,
        label_B=torch.tensor(label),
        weight_B=torch.ones(rows),
        labels={name: torch.tensor(values) for name, values in labels.items()},
    )


def test_weighted_log_loss_by_hand():
    """p = 1/2, 3/4 for labels 1, 0 with weights 1, 3: (1 ln 2 + 3 ln 4) / 4 = 7/4 ln 2."""
    logit = torch.tensor([0.0, math.log(3)])
    label, weight = torch.tensor([1.0, 0.0]), torch.tensor([1.0, 3.0])
    assert weighted_log_loss(logit, label, weight).item() == pytest.approx(1.75 * math.log(2))
    assert weighted_log_loss(logit, label, torch.zeros(2)).item() == 0
    # A probability of 0 for a click costs the logit, not infinity.
    assert weighted_log_loss(torch.tensor([-200.0]), torch.ones(1), torch.ones(1)).item() == pytest.approx(200)


def test_pairwise_loss_by_hand():
    logit, label = torch.tensor([1.0, 0.0, 3.0]), torch.tensor([1.0, 0.0, 0.0])
    # Pairs of row 0 with rows 1 and 2: log(1 + e^-1) and log(1 + e^2), the second of weight 3.
    expected = (math.log1p(math.exp(-1)) + 3 * math.log1p(math.exp(2))) / 4
    assert pairwise_loss(logit, label, torch.tensor([1.0, 1.0, 3.0])).item() == pytest.approx(expected)
    assert pairwise_loss(logit, torch.ones(3), torch.ones(3)).item() == 0


def test_terms_of_the_training_loss_by_hand():
    batch = labelled([1.0, 0.0])
    first, second = Outputs(torch.tensor([0.0, 0.0])), Outputs(torch.tensor([math.log(3), 0.0]))
    smooth = training_loss([first], batch, TrainConfig(label_smoothing=0.1))
    assert smooth.item() == pytest.approx(math.log(2))
    # Probabilities 1/2 and 3/4 of the first row: each 1/8 from their mean; the second row agrees.
    two = training_loss([first, second], batch, TrainConfig(self_ensemble=8.0))
    plain = training_loss([first, second], batch, TrainConfig())
    assert (two - plain).item() == pytest.approx(8 * (1 / 64) / 2)
    assert plain.item() == pytest.approx((math.log(2) + (math.log(4 / 3) + math.log(2)) / 2) / 2)


def test_a_task_counts_the_rows_whose_label_is_known():
    logit, label = torch.tensor([0.0, 5.0, math.log(3)]), torch.tensor([1.0, NAN, 0.0])
    # ln 2 of weight 1 and ln 4 of weight 3.
    assert task_loss(logit, label, torch.tensor([1.0, 2.0, 3.0])).item() == pytest.approx(1.75 * math.log(2))
    logit.requires_grad_()
    task_loss(logit, label, torch.ones(3)).backward()
    assert logit.grad is not None and logit.grad[1] == 0 and bool(logit.grad[[0, 2]].all())
    assert task_loss(torch.zeros(2), torch.full((2,), NAN), torch.ones(2)).item() == 0


def test_tasks_are_weighed_beside_the_click():
    batch = labelled([1.0, 0.0], like=[1.0, NAN], long=[0.0, 0.0])
    outputs = Outputs(torch.zeros(2), {"like": torch.tensor([math.log(3), 9.0]), "long": torch.zeros(2)})
    loss = training_loss([outputs], batch, TrainConfig(task_weights={"like": 0.5}))
    assert loss.item() == pytest.approx(math.log(2) + 0.5 * math.log(4 / 3) + math.log(2))


def test_the_click_loss_has_no_other_terms():
    batch = labelled([1.0, 0.0], like=[1.0, NAN])
    first = Outputs(torch.zeros(2), {"like": torch.tensor([math.log(3), 9.0])})
    second = Outputs(torch.tensor([math.log(3), 0.0]), {"like": torch.zeros(2)})
    config = TrainConfig(label_smoothing=0.1, pairwise=1.0, self_ensemble=8.0)
    # The mean over both passes of the mean over both rows: ln 2, and that of ln 4/3 and ln 2.
    expected = (math.log(2) + (math.log(4 / 3) + math.log(2)) / 2) / 2
    found = click_loss([first, second], batch)
    assert found.item() == pytest.approx(expected) and not found.requires_grad
    assert training_loss([first, second], batch, config).item() > expected + 0.5


def test_alignment_by_hand():
    """Two users and one without a past. Cosines 1 to itself, 0 to the other: -log(e^10 / (e^10 + 1)) each way."""
    content = torch.tensor([[2.0, 0.0], [0.0, 3.0], [0.0, 0.0]])
    users = torch.tensor([4, 5, 6])
    expected = math.log1p(math.exp(-10))
    assert alignment_loss(content, content, users).item() == pytest.approx(expected, rel=1e-3)
    # The ids of one user are the content of the other: cosine 0 to itself, 1 to the other.
    swapped = content[[1, 0, 2]]
    assert alignment_loss(content, swapped, users).item() == pytest.approx(10 + expected, rel=1e-5)
    # Rows of one user do not compete, and without any past there is nothing to align.
    assert alignment_loss(content, swapped, torch.tensor([4, 4, 6])).item() == pytest.approx(0)
    assert alignment_loss(torch.zeros(2, 2), torch.zeros(2, 2), users[:2]).item() == 0


def test_alignment_moves_ids_towards_content():
    def loss(ids: Tensor) -> Tensor:
        return alignment_loss(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), ids, torch.tensor([2, 3]))

    ids = torch.tensor([[0.5, 0.5], [0.5, 0.5]], requires_grad=True)
    loss(ids).backward()
    assert ids.grad is not None and loss(ids.detach() - 0.01 * ids.grad) < loss(ids.detach())
