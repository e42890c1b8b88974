"""What training minimises, by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from ctr.config import TrainConfig
from ctr.data.batch import Batch
from ctr.model.outputs import Outputs
from ctr.training.losses import (
    Share,
    click_loss,
    list_loss,
    mean_label_loss,
    task_loss,
    training_loss,
    weighted_log_loss,
)

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


# Lists 0 and 2 have both labels; list 1 has no positive, list 4 no negative; nobody is in list 3.
LIST = torch.tensor([0, 2, 0, 1, 2, 0, 1, 4, 2])
LABEL = torch.tensor([1.0, 1, 0, 0, 1, 0, 0, 1, 0])


def test_the_loss_of_lists_by_hand():
    """Of probabilities 1/2, 1/4, 1/4 in list 0, and 1/6, 1/3, 1/2 in list 2, whose first two are positives."""
    logit = torch.log(torch.tensor([2.0, 1, 1, 9, 2, 1, 7, 5, 3]))
    first, third = math.log(2), (math.log(6) + math.log(3)) / 2
    assert list_loss(logit, LABEL, torch.ones(9), LIST).item() == pytest.approx((first + third) / 2)
    # Mean weights 2 of list 0 and 1/3 of list 2; those of the others do not count.
    weight = torch.tensor([6.0, 1, 0, 50, 0, 0, 50, 50, 0])
    expected = (2 * first + third / 3) / (2 + 1 / 3)
    assert list_loss(logit, LABEL, weight, LIST).item() == pytest.approx(expected)


def test_a_list_weighs_what_its_rows_do_in_the_mean_however_many_they_are():
    """Half of ln 2 and of ln 3, not 2 and 3 fifths."""
    label, lists = torch.tensor([1.0, 0, 1, 0, 0]), torch.tensor([0, 0, 1, 1, 1])
    found = list_loss(torch.zeros(5), label, torch.ones(5), lists)
    assert found.item() == pytest.approx((math.log(2) + math.log(3)) / 2)


def test_the_gradient_of_the_loss_of_lists_by_hand():
    """Of a list: its weight's share times probability less share of the positives; of a list of one label, nothing."""
    logit = torch.log(torch.tensor([2.0, 1, 1, 9, 2, 1, 7, 5, 3])).requires_grad_()
    list_loss(logit, LABEL, torch.ones(9), LIST).backward()
    expected = [1 / 2 - 1, 1 / 6 - 1 / 2, 1 / 4, 0, 1 / 3 - 1 / 2, 1 / 4, 0, 0, 1 / 2]
    assert logit.grad is not None
    assert logit.grad.tolist() == pytest.approx([one / 2 for one in expected])


def test_the_gradient_of_the_loss_of_lists_is_that_of_its_values():
    draw = torch.Generator().manual_seed(0)
    logit = torch.randn(9, generator=draw, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(9, generator=draw, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: list_loss(s, LABEL.double(), weight, LIST), logit)


def test_lists_of_one_label_have_no_loss():
    logit = torch.tensor([3.0, -2.0, 1.0], requires_grad=True)
    loss = list_loss(logit, torch.tensor([0.0, 0.0, 1.0]), torch.ones(3), torch.tensor([0, 0, 1]))
    loss.backward()
    assert loss.item() == 0
    assert logit.grad is not None and not logit.grad.any()


def test_sure_scores_and_zero_weights_stay_finite():
    label, lists = torch.tensor([0.0, 1.0]), torch.zeros(2, dtype=torch.int32)
    assert list_loss(torch.tensor([500.0, -500.0]), label, torch.ones(2), lists).item() == pytest.approx(1000)
    assert list_loss(torch.tensor([500.0, -500.0]), label, torch.zeros(2), lists).item() == 0


def test_lists_are_weighed_beside_the_click_alone():
    batch = replace(labelled([1.0, 0.0], like=[0.0, 1.0]), list_B=torch.tensor([0, 0]))
    outputs = Outputs(torch.tensor([0.0, math.log(3)]), {"like": torch.zeros(2)})
    without = training_loss(outputs, batch, TrainConfig())
    found = training_loss(outputs, batch, TrainConfig(list_loss=0.25))
    # The click's share of 1 + 3; the like has no lists.
    assert (found - without).item() == pytest.approx(0.25 * math.log(4))
    assert click_loss(outputs, batch).item() == pytest.approx((math.log(2) + math.log(4)) / 2)


def test_a_batch_counts_as_its_share_of_a_step():
    batch = replace(labelled([1.0, 0.0], like=[0.0, NAN]), list_B=torch.tensor([0, 0]))
    outputs, config = Outputs(torch.tensor([0.0, math.log(3)]), {"like": torch.zeros(2)}), TrainConfig(list_loss=0.5)
    click, lists, like = 1.5 * math.log(2), 0.5 * math.log(4), math.log(2)
    assert training_loss(outputs, batch, config).item() == pytest.approx(click + lists + like)
    share = Share(rows=0.25, known={"like": torch.tensor(0.75)})
    assert training_loss(outputs, batch, config, share).item() == pytest.approx(0.25 * (click + lists) + 0.75 * like)


def test_the_loss_of_the_mean_label_by_hand():
    """A weighted quarter of clicks; of the known likes a half; both rows of the one list with both labels alike."""
    batch = replace(
        labelled([1.0, 0.0, 0.0], like=[1.0, 0.0, NAN]),
        weight_B=torch.tensor([1.0, 1.0, 2.0]),
        list_B=torch.tensor([0, 0, 1]),
    )
    outputs = Outputs(torch.tensor([9.0, -9.0, 3.0], requires_grad=True), {"like": torch.ones(3)})
    click, like = -0.25 * math.log(0.25) - 0.75 * math.log(0.75), math.log(2)
    found = mean_label_loss(outputs, batch, TrainConfig(task_weights={"like": 0.5}))
    assert found.item() == pytest.approx(click + 0.5 * like)
    assert not found.requires_grad
    found = mean_label_loss(outputs, batch, TrainConfig(list_loss=0.25))
    assert found.item() == pytest.approx(click + like + 0.25 * math.log(2))


def test_a_positive_counts_in_the_mean_label_as_often_as_its_weight_says():
    """Weights 3 of a click and 1 of none: a mean label of 3/4."""
    batch = replace(labelled([1.0, 0.0]), weight_B=torch.tensor([3.0, 1.0]))
    found = mean_label_loss(Outputs(torch.zeros(2), {}), batch, TrainConfig())
    assert found.item() == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))


def test_the_mean_label_of_rows_of_one_label_or_of_no_weight_has_no_loss():
    outputs = Outputs(torch.tensor([4.0, 5.0]), {"like": torch.zeros(2)})
    batch = labelled([0.0, 0.0], like=[NAN, NAN])
    assert mean_label_loss(outputs, batch, TrainConfig()).item() == pytest.approx(0, abs=2e-6)
    weightless = replace(labelled([0.0, 1.0], like=[1.0, 1.0]), weight_B=torch.zeros(2))
    assert mean_label_loss(outputs, weightless, TrainConfig()).item() == 0


def test_half_precision_is_left_before_lists_are_compared():
    batch = replace(labelled([1.0, 0.0, 0.0]), list_B=torch.zeros(3, dtype=torch.int32))
    logit = torch.tensor([0.0, 1.0, 0.5], dtype=torch.bfloat16)
    found = training_loss(Outputs(logit, {}), batch, TrainConfig(list_loss=1)) - click_loss(Outputs(logit, {}), batch)
    assert found.item() == pytest.approx(math.log(1 + math.e + math.exp(0.5)), rel=1e-5)
