"""The guard of a step: what is skipped, and what its judgement rests on; numbers by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from ctr.config import GuardConfig, TrainConfig
from ctr.training.guard import FEWEST, RECENT, StepGuard
from ctr.training.optimizer import make_optimizer

CPU = torch.device("cpu")
FINE = torch.tensor(1.0)


class Watched:
    """One weight of 2 at a learning rate of 0.5 under a guard, and a batch norm beside it."""

    def __init__(self, explosion: float = 10.0) -> None:
        self.model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
        nn.init.constant_(self.weight, 2.0)
        self.model.regularized_parameters = lambda: []  # type: ignore[assignment]
        self.optimizer = make_optimizer(self.model, TrainConfig(learning_rate=0.5), [self.weight])
        self.guard = StepGuard(self.model, self.optimizer, GuardConfig(explosion=explosion), CPU)
        self.steps = 0

    @property
    def weight(self) -> Tensor:
        return self.model[0].weight  # type: ignore[return-value]

    def step(self, loss: float = 0.25, gradient: float = 1.0, of_labels: float = 0.0) -> bool:
        """Take a step; returns whether it was skipped."""
        self.weight.grad = torch.full((1, 1), gradient)
        self.guard.enter()
        self.guard.watch(self.steps, torch.tensor(loss), self.weight.grad.norm(), torch.tensor(of_labels))
        self.optimizer.step()
        self.steps += 1
        return bool(self.guard.marked.item())


@pytest.mark.parametrize("gradient", [math.nan, math.inf, -math.inf])
def test_a_bad_gradient_moves_no_weight_and_the_next_one_does(gradient: float) -> None:
    watched = Watched()
    assert [watched.step(gradient=value) for value in (1.0, gradient, 1.0)] == [False, True, False]
    # Adam's steps on equal gradients are the learning rate against their sign: 2 - 0.5 - 0.5.
    assert watched.weight.item() == pytest.approx(1.0)
    assert watched.guard.skipped() == 1


def test_a_loss_above_ten_medians_is_skipped_and_one_at_ten_is_taken() -> None:
    watched = Watched(explosion=10.0)
    # The median of 8 times 0.25, 7 times 0.5 and once 4 is the lower of the two in the middle: 0.25.
    assert not any(watched.step(loss) for loss in [0.25] * 8 + [0.5] * 7 + [4.0])
    assert not watched.step(2.5)
    watched = Watched(explosion=10.0)
    assert not any(watched.step(loss) for loss in [0.25] * 8 + [0.5] * 7 + [4.0])
    assert watched.step(2.51)


def test_a_loss_that_the_mean_label_of_its_rows_nearly_has_is_taken_whatever_the_median_is() -> None:
    watched = Watched(explosion=10.0)
    assert not any(watched.step(0.001) for _ in range(FEWEST))
    assert not watched.step(0.25, of_labels=0.025)
    assert watched.step(0.26, of_labels=0.025)
    # Where labels leave less open than the median, that one judges.
    assert not watched.step(0.009, of_labels=0.0005)
    assert watched.step(0.011, of_labels=0.0005)


def test_a_loss_is_judged_beside_batches_without_any_weight() -> None:
    watched = Watched(explosion=10.0)
    assert not any(watched.step(0.0) for _ in range(FEWEST))
    assert not watched.step(0.7, of_labels=0.6)


def test_fewer_losses_than_sixteen_judge_nothing() -> None:
    watched = Watched()
    assert not any(watched.step(0.25) for _ in range(FEWEST - 1))
    assert not watched.step(1e6)
    assert watched.step(1e6)


def test_a_skipped_step_counts_for_nothing() -> None:
    watched = Watched()
    assert not any(watched.step(0.25) for _ in range(FEWEST - 1))
    assert watched.step(math.nan)
    assert not watched.step(1e6)


def test_skipped_losses_are_not_in_the_median_and_old_ones_leave_it() -> None:
    watched = Watched()
    assert not any(watched.step(1.0) for _ in range(FEWEST))
    assert all(watched.step(100.0) for _ in range(RECENT))
    assert not any(watched.step(9.0) for _ in range(RECENT // 2 + 1))
    # 33 of the 64 newest losses are 9 once the 16 of 1 and 15 more of 9 are there: the median is 9.
    assert not any(watched.step(9.0) for _ in range(RECENT // 2))
    assert not watched.step(89.0)


def test_a_skipped_step_leaves_the_statistics_of_batch_norm() -> None:
    watched = Watched()
    norm = watched.model[1]
    watched.guard.enter()
    norm(torch.tensor([[0.0], [2.0]]))
    watched.guard.watch(0, FINE, FINE, FINE)
    # A tenth of the batch's mean 1, and of its variance 2 beside nine tenths of 1.
    assert (norm.running_mean.item(), norm.running_var.item()) == pytest.approx((0.1, 1.1))
    watched.guard.enter()
    norm(torch.tensor([[math.nan], [2.0]]))
    watched.guard.watch(1, torch.tensor(math.nan), FINE, FINE)
    assert (norm.running_mean.item(), norm.running_var.item()) == pytest.approx((0.1, 1.1))
    assert norm.num_batches_tracked.item() == 1


def test_the_first_skipped_step_since_the_count_began_is_told() -> None:
    watched = Watched()
    for _ in range(FEWEST):
        watched.step(0.25)
    watched.step(3.0)
    watched.step(math.nan)
    expected = "step 16: exploded: loss 3 (median of the steps before 0.25), gradient norm 1, learning rate 0.5"
    assert watched.guard.reason(0.5) == expected
    watched.guard.begin()
    watched.step(0.25, gradient=math.inf)
    assert watched.guard.skipped() == 1
    assert watched.guard.reason(0.5).startswith("step 18: not finite: loss 0.25")


def test_what_was_forgotten_judges_nothing() -> None:
    watched = Watched()
    for _ in range(FEWEST):
        watched.step(0.25)
    watched.guard.forget()
    assert not watched.step(100.0)


def test_a_resumed_guard_judges_as_the_one_before() -> None:
    watched, other = Watched(), Watched()
    for _ in range(FEWEST):
        watched.step(0.25)
    watched.step(math.nan)
    other.guard.load_state({name: tensor.clone() for name, tensor in watched.guard.state().items()})
    assert other.guard.skipped() == 1
    assert other.step(3.0) and not other.step(2.0)
