from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ctr.model.sparse_embedding import RowTable
from ctr.training import sparse_optimizer as row_optim
from ctr.training.sparse_optimizer import RowOptimizer, RowOptimizerKind
from features.errors import ConfigError

WITH_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")
DEVICES = ["cpu", pytest.param("cuda", marks=WITH_CUDA)]
KINDS: list[RowOptimizerKind] = ["lazy_adam", "rowwise_adagrad"]
RATE = 0.1


def table_of(weight: Any = None, size: int = 12, width: int = 4) -> RowTable:
    """Of the rows given, under a padding row; or a fresh one."""
    if weight is not None:
        size, width = len(weight) + 1, len(weight[0])
    table = RowTable(size, width)
    table.by_row = True
    if weight is not None:
        with torch.no_grad():
            table.weight[1:] = torch.tensor(weight)
    return table


def rows_of(table: RowTable) -> list[list[float]]:
    return table.weight[1:].tolist()


def backward(table: nn.Module, index: Tensor, cotangent: Tensor) -> None:
    (table(index) * cotangent).sum().backward()


def batches(count: int, size: int = 12, width: int = 4, rows: int = 6) -> Iterator[tuple[Tensor, Tensor]]:
    """Indices that leave many rows alone and name some twice, with what their embeddings are multiplied by.

    Those numbers stay far from zero, where the ε of an optimiser decides.
    """
    generator = torch.Generator().manual_seed(3)
    for _ in range(count):
        index = torch.randint(0, size, (rows,), generator=generator)
        yield index, torch.rand(rows, width, generator=generator) + 0.5


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("l2", [0.0, 0.3])
def test_lazy_adam_is_adam_where_every_row_is_touched(l2: float, device: str):
    torch.manual_seed(0)
    table = table_of().to(device)
    dense = nn.Embedding(12, 4, padding_idx=0, device=device)
    dense.load_state_dict(table.state_dict())
    ours = RowOptimizer({"item": table}, "lazy_adam", l2=l2)
    theirs = torch.optim.Adam(dense.parameters(), lr=RATE, weight_decay=l2)
    for _ in range(20):
        index = torch.cat([torch.randperm(12), torch.tensor([0, 3, 3])]).to(device)
        cotangent = torch.randn(15, 4, device=device)
        backward(table, index, cotangent)
        theirs.zero_grad()
        backward(dense, index, cotangent)
        ours.step(RATE)
        theirs.step()
    torch.testing.assert_close(table.weight, dense.weight)
    assert not table.weight[0].any()


def test_lazy_adam_is_sparse_adam_on_random_rows():
    table = table_of()
    sparse = nn.Embedding(12, 4, padding_idx=0, sparse=True)
    sparse.load_state_dict(table.state_dict())
    ours = RowOptimizer({"item": table}, "lazy_adam", l2=0.0)
    theirs = torch.optim.SparseAdam(list(sparse.parameters()), lr=RATE)
    for index, cotangent in batches(30):
        backward(table, index, cotangent)
        theirs.zero_grad()
        backward(sparse, index, cotangent)
        ours.step(RATE)
        theirs.step()
    torch.testing.assert_close(table.weight, sparse.weight, atol=2e-6, rtol=1e-5)


def test_hand_worked_rowwise_adagrad():
    table = table_of([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    optimizer = RowOptimizer({"item": table}, "rowwise_adagrad", l2=0.0)
    # Row 1 gets (1, 7): mean square (1 + 49) / 2 = 25, root 5, moves by 0.1 / 5 = 0.02 times (1, 7).
    # Row 3 gets (3, 3): mean square 9, root 3, moves by 0.1 / 3 · 3 = 0.1.
    backward(table, torch.tensor([1, 3]), torch.tensor([[1.0, 7.0], [3.0, 3.0]]))
    optimizer.step(RATE)
    assert rows_of(table)[0] == pytest.approx([0.98, 1.86])
    assert rows_of(table)[1] == [3.0, 4.0]
    assert rows_of(table)[2] == pytest.approx([4.9, 5.9])
    # Row 3 again with (4, 4): sum 9 + 16 = 25, root 5, moves by 0.02 · 4 = 0.08. Row 1 stays.
    backward(table, torch.tensor([3]), torch.tensor([[4.0, 4.0]]))
    optimizer.step(RATE)
    assert rows_of(table)[0] == pytest.approx([0.98, 1.86])
    assert rows_of(table)[2] == pytest.approx([4.82, 5.82])
    assert optimizer.state()["item.sum"].tolist() == pytest.approx([0.0, 25.0, 0.0, 25.0])


@pytest.mark.parametrize("kind", KINDS)
def test_epsilon_stands_outside_the_root(kind: RowOptimizerKind):
    table = table_of([[0.0, 0.0], [1.0, 1.0]])
    optimizer = RowOptimizer({"item": table}, kind, l2=0.0)
    # Row 1: root of the (corrected) mean square 1e-8, ε 1e-8: moves by 0.1 · 1e-8 / 2e-8. Row 2: nothing over ε.
    backward(table, torch.tensor([1, 2]), torch.tensor([[1e-8, 1e-8], [0.0, 0.0]]))
    optimizer.step(RATE)
    assert rows_of(table)[0] == pytest.approx([-0.05, -0.05], rel=1e-4)
    assert rows_of(table)[1] == [1.0, 1.0]


@pytest.mark.parametrize("kind", KINDS)
def test_an_update_in_pieces_is_the_update(kind: RowOptimizerKind, monkeypatch: pytest.MonkeyPatch):
    whole, pieces = table_of(), table_of()
    pieces.load_state_dict(whole.state_dict())
    at_once = RowOptimizer({"item": whole}, kind, l2=0.1)
    in_pieces = RowOptimizer({"item": pieces}, kind, l2=0.1)
    for index, cotangent in batches(5):
        backward(whole, index, cotangent)
        backward(pieces, index, cotangent)
        at_once.step(RATE)
        with monkeypatch.context() as patch:
            patch.setattr(row_optim, "PIECE", 8)  # two rows of four
            in_pieces.step(RATE)
    torch.testing.assert_close(whole.weight, pieces.weight)


def test_hand_worked_l2_on_touched_rows():
    table = table_of([[2.0, 2.0], [8.0, 8.0]])
    optimizer = RowOptimizer({"item": table}, "rowwise_adagrad", l2=0.5)
    # Row 1: 3 + 0.5 · 2 = 4, mean square 16, moves by 0.1 / 4 · 4 = 0.1. Row 2 is not touched: no L2.
    backward(table, torch.tensor([1]), torch.tensor([[3.0, 3.0]]))
    optimizer.step(RATE)
    assert optimizer.state()["item.sum"].tolist() == pytest.approx([0.0, 16.0, 0.0])
    assert rows_of(table)[0] == pytest.approx([1.9, 1.9])
    assert rows_of(table)[1] == [8.0, 8.0]


@pytest.mark.parametrize("kind", KINDS)
def test_two_accumulated_batches_are_one_batch(kind: RowOptimizerKind):
    torch.manual_seed(2)
    halves, whole = table_of(), table_of()
    whole.load_state_dict(halves.state_dict())
    in_halves = RowOptimizer({"item": halves}, kind, l2=0.1)
    at_once = RowOptimizer({"item": whole}, kind, l2=0.1)
    for index, cotangent in batches(10):
        backward(halves, index[:2], cotangent[:2])
        backward(halves, index[2:], cotangent[2:])
        backward(whole, index, cotangent)
        in_halves.step(RATE)
        at_once.step(RATE)
    torch.testing.assert_close(halves.weight, whole.weight)


@pytest.mark.parametrize("kind", KINDS)
def test_the_padding_row_and_rows_not_named_stay(kind: RowOptimizerKind):
    table = table_of()
    before = table.weight.detach().clone()
    optimizer = RowOptimizer({"item": table}, kind, l2=0.1)
    for index in ([0, 4], [0, 0], [7, 0]):
        rows, place = table.gather(torch.tensor(index))
        rows[place].sum().backward()  # sends padding a gradient, too
        optimizer.step(RATE)
    assert (table.weight != before).any(dim=1).nonzero().flatten().tolist() == [4, 7]
    assert not table.weight[0].any()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_skipped_step_changes_nothing(kind: RowOptimizerKind, device: str):
    torch.manual_seed(4)
    skipping, plain = table_of().to(device), table_of().to(device)
    plain.load_state_dict(skipping.state_dict())
    ours = RowOptimizer({"item": skipping}, kind, l2=0.1)
    other = RowOptimizer({"item": plain}, kind, l2=0.1)
    go, skip = torch.zeros((), device=device), torch.full((), 2.0, device=device)
    for number, (index, cotangent) in enumerate(batches(6)):
        index, cotangent = index.to(device), cotangent.to(device)
        if number % 2:
            backward(skipping, index, cotangent * float("nan"))
            ours.step(RATE, skip)
            continue
        backward(skipping, index, cotangent)
        ours.step(RATE, go)
        backward(plain, index, cotangent)
        other.step(RATE)
    assert torch.equal(skipping.weight, plain.weight)
    assert ours.state()["step"] == 3
    for name, tensor in other.state().items():
        assert torch.equal(ours.state()[name], tensor), name


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_ends_bit_by_bit_the_same(kind: RowOptimizerKind):
    torch.manual_seed(5)
    tables = {"item": table_of(), "tag": table_of(size=12)}
    optimizer = RowOptimizer(tables, kind, l2=0.1)
    for number, (index, cotangent) in enumerate(batches(10)):
        if number == 5:
            saved = {name: tensor.clone() for name, tensor in optimizer.state().items()}
            resumed = {name: table_of(table.weight[1:].tolist()) for name, table in tables.items()}
            goes_on = RowOptimizer(resumed, kind, l2=0.1)
            goes_on.load_state(saved)
        for name in tables:
            backward(tables[name], index, cotangent)
            if number >= 5:
                backward(resumed[name], index, cotangent)
        optimizer.step(RATE)
        if number >= 5:
            goes_on.step(RATE)
    for name, table in tables.items():
        assert torch.equal(table.weight, resumed[name].weight)
    for name, tensor in optimizer.state().items():
        assert torch.equal(tensor, goes_on.state()[name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_after_a_reset_it_starts_afresh(kind: RowOptimizerKind):
    used, fresh = table_of(), table_of()
    optimizer = RowOptimizer({"item": used}, kind, l2=0.1)
    for index, cotangent in batches(3):
        backward(used, index, cotangent)
        optimizer.step(RATE)
    optimizer.reset_rows()
    fresh.load_state_dict(used.state_dict())
    other = RowOptimizer({"item": fresh}, kind, l2=0.1)
    for index, cotangent in batches(3):
        backward(used, index, cotangent)
        backward(fresh, index, cotangent)
        optimizer.step(RATE)
        other.step(RATE)
    assert torch.equal(used.weight, fresh.weight)


def test_steps_count_for_tables_that_a_batch_leaves_alone():
    """The correction of lazy Adam is that of the optimiser's steps: a row's first touch at step 10 moves it less."""
    late, other = table_of([[0.0, 0.0]]), table_of()
    optimizer = RowOptimizer({"late": late, "other": other}, "lazy_adam", l2=0.0)
    for index, cotangent in batches(9):
        backward(other, index, cotangent)
        optimizer.step(RATE)
    backward(late, torch.tensor([1]), torch.ones(1, 2))
    optimizer.step(RATE)
    # m = 0.1 and v = 0.001, corrected by 1 - 0.9^10 = 0.6513216 and 1 - 0.999^10 = 0.0099551198:
    # 0.1 · (0.1 / 0.6513216) / √(0.001 / 0.0099551198) = 0.1 · 0.1535340 / 0.3169380 = 0.0484429
    assert rows_of(late)[0] == pytest.approx([-0.0484429] * 2, rel=1e-5)


def test_zero_grad_forgets_what_was_gathered():
    table = table_of([[1.0, 1.0]])
    optimizer = RowOptimizer({"item": table}, "lazy_adam", l2=0.1)
    backward(table, torch.tensor([1]), torch.ones(1, 2))
    optimizer.zero_grad()
    optimizer.step(RATE)
    assert rows_of(table) == [[1.0, 1.0]]


@pytest.mark.parametrize(
    ("other", "example"),
    [
        (RowOptimizer({"item": table_of()}, "rowwise_adagrad", l2=0.0), "item.exp_avg"),
        (RowOptimizer({"item": table_of(size=13)}, "lazy_adam", l2=0.0), "item.exp_avg"),
    ],
)
def test_the_state_of_another_optimiser_is_refused(other: RowOptimizer, example: str):
    optimizer = RowOptimizer({"item": table_of()}, "lazy_adam", l2=0.0)
    with pytest.raises(ConfigError, match=f"does not fit lazy_adam: .*'{example}'"):
        optimizer.load_state(other.state())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_state_follows_a_table_that_moves():
    table = table_of()
    optimizer = RowOptimizer({"item": table}, "lazy_adam", l2=0.1)
    backward(table, torch.tensor([1]), torch.ones(1, 4))
    optimizer.step(RATE)
    table.to("cuda")
    backward(table, torch.tensor([1], device="cuda"), torch.ones(1, 4, device="cuda"))
    optimizer.step(RATE)
    assert {tensor.device.type for tensor in optimizer.state().values()} == {"cuda"}
    assert optimizer.state()["step"] == 2
