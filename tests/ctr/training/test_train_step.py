"""One training step: windows of batches, precisions, tables by row, and nothing that is not a number."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from ctr.config import TrainConfig
from ctr.data.batch import Batch
from ctr.data.prefetch import on_device, windows
from ctr.model.outputs import Outputs
from ctr.model.sparse_embedding import RowTable
from ctr.training.train_step import SMALL_TABLE_ROWS, TrainStep
from features.errors import ConfigError

CPU = torch.device("cpu")
LARGE = SMALL_TABLE_ROWS + 1


class Plain(nn.Module):
    """logit = w · item + small[user]: no batch norm, so that rows do not see each other."""

    def __init__(self, rows: int = LARGE, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.item = RowTable(rows, 4)
        self.user = RowTable(5, 1)
        self.logit = nn.Linear(4, 1)

    def regularized_parameters(self) -> list[nn.Parameter]:
        return [self.item.weight, self.user.weight]

    def outputs(self, batch: Batch) -> Outputs:
        return Outputs(self(batch))

    def forward(self, batch: Batch) -> Tensor:
        return (self.logit(self.item(batch.target_B)) + self.user(batch.user_B)).squeeze(-1)


class WithTask(Plain):
    """The same logit for a further label, too."""

    def outputs(self, batch: Batch) -> Outputs:
        logit_B = self(batch)
        return Outputs(logit_B, {"like": logit_B})


def random_batch(rows: int, seed: int, items: int = LARGE) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    return Batch(
        items_U=torch.arange(items),
        target_B=torch.randint(1, items, (rows,), generator=draw, dtype=torch.int32),
        history_BS=torch.zeros(rows, 1, dtype=torch.int32),
        user_B=torch.randint(1, 5, (rows,), generator=draw, dtype=torch.int32),
        label_B=torch.randint(0, 2, (rows,), generator=draw).float(),
        weight_B=torch.rand(rows, generator=draw),
    )


def joined(*batches: Batch) -> Batch:
    names = ("target_B", "history_BS", "user_B", "label_B", "weight_B")
    return replace(batches[0], **{name: torch.cat([getattr(one, name) for one in batches]) for name in names})


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("table_optimizer", ["adam", "lazy_adam"])
def test_a_window_of_batches_is_one_step_on_all_their_rows(table_optimizer: str):
    config = TrainConfig(table_optimizer=table_optimizer, embedding_l2=0.1)
    batches = [random_batch(7, 1), random_batch(30, 2), random_batch(1, 3)]
    apart, together = Plain(), Plain()
    for step in range(3):
        loss_apart = TrainStep(apart, config, CPU)(batches, 0.1, step)
        loss_together = TrainStep(together, config, CPU)([joined(*batches)], 0.1, step)
        torch.testing.assert_close(loss_apart, loss_together)
    for name, tensor in weights(together).items():
        torch.testing.assert_close(weights(apart)[name], tensor, msg=name)


def test_a_further_label_that_few_rows_of_a_batch_know_is_the_mean_over_the_window():
    """Of 7 and 30 rows 2 and all are known, of the last one none."""
    batches = [random_batch(7, 1), random_batch(30, 2), random_batch(1, 3)]
    likes = [1 - batch.label_B for batch in batches]
    likes[0][2:], likes[2][:] = torch.nan, torch.nan
    batches = [replace(batch, labels={"like": like}) for batch, like in zip(batches, likes, strict=True)]
    together = replace(joined(*batches), labels={"like": torch.cat(likes)})
    config = TrainConfig(task_weights={"like": 2.0}, clip_norm=1e9)
    apart, whole = WithTask(), WithTask()
    losses = [TrainStep(apart, config, CPU)(batches, 0.1, 0), TrainStep(whole, config, CPU)([together], 0.1, 0)]
    torch.testing.assert_close(*losses)
    for (name, one), other in zip(apart.named_parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=name)


def test_the_click_loss_of_a_window_is_that_of_its_rows():
    batches = [random_batch(7, 1), random_batch(30, 2)]
    alone, beside = TrainStep(Plain(), TrainConfig(), CPU), TrainStep(WithTask(), TrainConfig(), CPU)
    loss = alone(batches, 0.1, 0)
    torch.testing.assert_close(alone.click_loss, loss)
    batch = joined(*batches)
    other = beside([replace(batch, labels={"like": batch.label_B})], 0.1, 0)
    torch.testing.assert_close(beside.click_loss, loss)
    torch.testing.assert_close(other, 2 * loss)


def test_by_row_only_the_rows_of_the_batch_move():
    model = Plain()
    before = weights(model)
    batch = random_batch(20, 1)
    TrainStep(model, TrainConfig(table_optimizer="lazy_adam", embedding_l2=0.1), CPU)([batch], 0.1, 0)
    moved = (model.item.weight != before["item.weight"]).any(1).nonzero().flatten()
    assert moved.tolist() == batch.target_B.unique().tolist()
    # The small table is moved whole, its untouched rows by their L2.
    assert (model.user.weight != before["user.weight"]).flatten().tolist() == [False, True, True, True, True]


def test_by_row_equals_adam_where_every_row_is_touched_clipping_included():
    every_row = replace(random_batch(LARGE - 1, 1), target_B=torch.arange(1, LARGE, dtype=torch.int32))
    dense, by_row = Plain(), Plain()
    steps = [
        TrainStep(model, TrainConfig(table_optimizer=kind, embedding_l2=0.01, clip_norm=0.003), CPU)
        for model, kind in ((dense, "adam"), (by_row, "lazy_adam"))
    ]
    for number in range(4):
        # Labels and weights change from step to step, and with them how much is clipped.
        batch = replace(every_row, weight_B=every_row.weight_B**number, label_B=(every_row.label_B + number) % 2)
        for take_step in steps:
            take_step([batch], 0.05, number)
    for name, tensor in weights(dense).items():
        torch.testing.assert_close(weights(by_row)[name], tensor, msg=name)


@pytest.mark.parametrize("table_optimizer", ["adam", "lazy_adam", "rowwise_adagrad"])
def test_a_bad_step_is_as_if_it_had_never_been(table_optimizer: str):
    """Weights and moments after a good, a bad and a good step are those after the two good ones."""
    config = TrainConfig(table_optimizer=table_optimizer)
    with_bad, without = Plain(), Plain()
    guarded, plain = TrainStep(with_bad, config, CPU), TrainStep(without, config, CPU)
    bad = random_batch(20, 2)
    bad = replace(bad, weight_B=bad.weight_B.index_fill(0, torch.tensor([3]), torch.inf))
    guarded([random_batch(20, 1)], 0.1, 0)
    assert guarded([bad], 0.1, 1).item() == 0.0 and guarded.click_loss.item() == 0.0
    guarded([random_batch(20, 3)], 0.1, 2)
    for number, seed in enumerate((1, 3)):
        plain([random_batch(20, seed)], 0.1, number)
    assert all(torch.equal(weights(without)[name], tensor) for name, tensor in weights(with_bad).items())
    moments = {name: tensor for name, tensor in plain.state().items() if not name.startswith("guard.")}
    assert moments and all(torch.equal(guarded.state()[name], tensor) for name, tensor in moments.items())
    assert guarded.guard.skipped() == 1


@pytest.mark.parametrize("table_optimizer", ["adam", "lazy_adam", "rowwise_adagrad"])
def test_a_step_after_forgetting_is_a_first_one(table_optimizer: str):
    config = TrainConfig(table_optimizer=table_optimizer)
    model, fresh = Plain(), Plain(seed=9)
    take_step = TrainStep(model, config, CPU)
    for number in range(3):
        take_step([random_batch(20, number)], 0.1, number)
    fresh.load_state_dict(weights(model))
    take_step.forget()
    for one in (take_step, TrainStep(fresh, config, CPU)):
        one([random_batch(20, 7)], 0.1, 3)
    assert all(torch.equal(weights(fresh)[name], tensor) for name, tensor in weights(model).items())


@pytest.mark.parametrize("table_optimizer", ["adam", "lazy_adam", "rowwise_adagrad"])
def test_renewed_tables_begin_again_and_the_rest_goes_on(table_optimizer: str):
    model = Plain()
    take_step = TrainStep(model, TrainConfig(table_optimizer=table_optimizer), CPU)
    for number in range(3):
        take_step([random_batch(200, number)], 0.1, number)
    before, moments = weights(model), {name: tensor.clone() for name, tensor in take_step.state().items()}
    take_step.reset_embeddings()
    assert torch.equal(model.logit.weight, before["logit.weight"])
    for table, name in ((model.item, "item.weight"), (model.user, "user.weight")):
        assert not torch.equal(table.weight, before[name])
        assert 0.005 < table.weight[1:].std() < 0.02 and not table.weight[0].any()
    now = {name: tensor for name, tensor in take_step.state().items() if not name.startswith("guard.")}
    kept = {name for name, tensor in now.items() if torch.equal(tensor, moments[name]) and tensor.any()}
    forgotten = {name for name, tensor in now.items() if not tensor.any()}
    # The logit's weight and bias: two moments and a count each.
    assert len(kept) == 6 and all(name.startswith("dense.") for name in kept)
    assert kept | forgotten == now.keys()


def test_half_precision_trains_weights_of_single_precision():
    """Near the exact run, but not it: if autocast were off the two would be equal."""
    exact, half = Plain(), Plain()
    for model, precision in ((exact, "fp32"), (half, "bf16")):
        take_step = TrainStep(model, TrainConfig(precision=precision), CPU)
        for number in range(5):
            loss = take_step([random_batch(100, number)], 0.01, number)
        assert loss.dtype == torch.float32
    assert all(tensor.dtype == torch.float32 for tensor in weights(half).values())
    moved = exact.item.weight - half.item.weight
    assert 0 < moved.abs().max() < 0.01


@pytest.mark.parametrize("changed", [{}, {"table_optimizer": "lazy_adam"}, {"table_optimizer": "rowwise_adagrad"}])
def test_the_step_after_loading_is_the_same_to_the_bit(changed: dict):
    config = TrainConfig(embedding_l2=0.1, **changed)
    model, other = Plain(), Plain(seed=9)
    take_step = TrainStep(model, config, CPU)
    for number in range(3):
        take_step([random_batch(20, number)], 0.1, number)
    state = {name: tensor.clone() for name, tensor in take_step.state().items()}
    other.load_state_dict(weights(model))
    resumed = TrainStep(other, config, CPU)
    resumed.load_state(state)
    for one in (take_step, resumed):
        one([random_batch(20, 7)], 0.1, 3)
    assert all(torch.equal(weights(other)[name], tensor) for name, tensor in weights(model).items())


def test_compiling_on_a_cpu_says_the_way_out():
    with pytest.raises(ConfigError, match=r"train\.compile: meant for CUDA.*set it to false"):
        TrainStep(Plain(), TrainConfig(compile=True), CPU)


def test_windows_drop_nothing():
    assert list(windows([1, 2, 3, 4, 5], 2)) == [(1, 2), (3, 4), (5,)]
    assert list(windows([], 2)) == []


def test_on_a_cpu_batches_pass_as_they_are():
    def source() -> Iterator[Batch]:
        yield from (random_batch(3, seed) for seed in range(2))

    fed = list(on_device(source(), CPU))
    assert [batch.label_B.tolist() for batch in fed] == [batch.label_B.tolist() for batch in source()]


def test_a_foreign_state_is_refused():
    saved = TrainStep(Plain(), TrainConfig(table_optimizer="lazy_adam"), CPU).state()
    with pytest.raises(ConfigError, match="rowwise_adagrad"):
        TrainStep(Plain(), TrainConfig(table_optimizer="rowwise_adagrad"), CPU).load_state(saved)


@pytest.mark.parametrize("embedding_l2", [0.0, 100.0])
def test_clipping_bounds_the_gradient_of_the_loss_without_its_l2(embedding_l2: float):
    model = Plain()
    TrainStep(model, TrainConfig(embedding_l2=embedding_l2, clip_norm=1e-3), CPU)([random_batch(50, 1)], 0.0, 0)
    clipped = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    free = Plain()
    TrainStep(free, TrainConfig(clip_norm=1e9), CPU)([random_batch(50, 1)], 0.0, 0)
    gradient = torch.cat([parameter.grad.flatten() for parameter in free.parameters()])
    assert gradient.norm() > 1e-3
    torch.testing.assert_close(clipped, gradient * (1e-3 / gradient.norm()), rtol=1e-3, atol=1e-9)


def test_a_batch_with_rare_positives_is_no_explosion_beside_batches_without_any():
    """Two of 64 rows at a logit of -8: a mean loss of 0.25, 740 times that of the batches before it."""
    model = Plain()
    with torch.no_grad():
        model.logit.weight.zero_()
        model.logit.bias.fill_(-8.0)
    take_step = TrainStep(model, TrainConfig(), CPU)
    none = replace(random_batch(64, 1), label_B=torch.zeros(64), weight_B=torch.ones(64))
    for step in range(20):
        take_step([none], 1e-6, step)
    two = replace(none, label_B=(torch.arange(64) < 2).float())
    assert take_step([two], 1e-6, 20).item() == pytest.approx(0.25, rel=0.01)
    assert take_step.guard.skipped() == 0
