"""What training minimises, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from ctr.config import TrainConfig
from ctr.data.batch import Batch
from ctr.model.outputs import Outputs
from ctr.training.losses import click_loss, task_loss, training_loss, weighted_log_loss

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
    loss = training_loss(outputs, batch, TrainConfig(task_weights={"like": 0.5}))
    assert loss.item() == pytest.approx(math.log(2) + 0.5 * math.log(4 / 3) + math.log(2))


def test_the_click_loss_has_no_other_terms():
    batch = labelled([1.0, 0.0], like=[1.0, NAN])
    outputs = Outputs(torch.tensor([math.log(3), 0.0], requires_grad=True), {"like": torch.zeros(2)})
    # The mean over both rows of ln 4/3 and ln 2; the like's ln 2 is in the training loss alone.
    expected = (math.log(4 / 3) + math.log(2)) / 2
    found = click_loss(outputs, batch)
    assert found.item() == pytest.approx(expected) and not found.requires_grad
    loss = training_loss(outputs, batch, TrainConfig())
    assert loss.item() == pytest.approx(expected + math.log(2)) and loss.requires_grad
