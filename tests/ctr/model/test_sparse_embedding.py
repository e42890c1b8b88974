from __future__ import annotations

import pytest
import torch
from torch import nn

from ctr.model.sparse_embedding import INITIAL_STD, RowTable

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
INDEX_DTYPES = [torch.int32, torch.int64]


def by_row(size: int = 9, width: int = 3, device: str = "cpu") -> RowTable:
    table = RowTable(size, width).to(device)
    table.by_row = True
    return table


def dense_like(table: RowTable) -> nn.Embedding:
    dense = nn.Embedding(*table.weight.shape, padding_idx=0, device=table.weight.device)
    dense.load_state_dict(table.state_dict())
    return dense


def test_a_fresh_table_is_small_noise_over_a_padding_row_of_zeros():
    torch.manual_seed(0)
    table = RowTable(2_000, 50)
    assert not table.weight[0].any()
    assert table.weight[1:].std().item() == pytest.approx(INITIAL_STD, rel=0.02)
    before = table.weight.detach().clone()
    table.reset_parameters()
    assert not table.weight[0].any()
    assert not torch.equal(table.weight, before)
    assert list(table.state_dict()) == ["weight"]


@pytest.mark.parametrize("dtype", INDEX_DTYPES)
def test_by_row_off_it_is_an_embedding(dtype: torch.dtype):
    table = RowTable(9, 3)
    dense = dense_like(table)
    index = torch.tensor([[3, 0, 3], [8, 1, 0]], dtype=dtype)
    cotangent = torch.randn(2, 3, 3)
    for one in (table, dense):
        (one(index) * cotangent).sum().backward()
    assert torch.equal(table(index), dense(index))
    assert table.weight.grad is not None and dense.weight.grad is not None
    assert torch.equal(table.weight.grad, dense.weight.grad)
    assert table.take_gradient() is None


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", INDEX_DTYPES)
@pytest.mark.parametrize("shape", [(40,), (5, 8), (2, 4, 5), (0,), (3, 0)])
def test_values_and_gradient_are_those_of_an_embedding(shape: tuple[int, ...], dtype: torch.dtype, device: str):
    torch.manual_seed(1)
    table = by_row(size=50, device=device)
    dense = dense_like(table)
    index = torch.randint(0, 50, shape, dtype=dtype, device=device)
    index.view(-1)[:3] = 0
    cotangent = torch.randn(*shape, 3, device=device)
    values = table(index)
    assert torch.equal(values, dense(index))
    (values * cotangent).sum().backward()
    (dense(index) * cotangent).sum().backward()

    assert table.weight.grad is None
    taken = table.take_gradient()
    if not index.any():
        assert taken is None
        return
    assert taken is not None and dense.weight.grad is not None
    assert taken.index_R.tolist() == sorted(set(index.flatten().tolist()) - {0})
    torch.testing.assert_close(taken.gradient_RE, dense.weight.grad[taken.index_R.long()])
    assert table.take_gradient() is None


def test_hand_worked_gradient_without_the_padding_row():
    table = by_row(size=6, width=2)
    weights = torch.tensor([[1.0], [10.0], [100.0], [1000.0]])
    (table(torch.tensor([4, 0, 2, 4])) * weights).sum().backward()
    taken = table.take_gradient()
    assert taken is not None
    assert taken.index_R.tolist() == [2, 4]
    assert taken.gradient_RE.tolist() == [[100.0, 100.0], [1001.0, 1001.0]]  # row 4: 1 + 1000


def test_only_named_rows_are_gathered_each_once():
    table = by_row(size=1_000)
    table(torch.tensor([7, 999, 7, 7, 0]))
    (gathered,) = table.gathered
    assert gathered.index_R.tolist() == [0, 7, 999]
    assert torch.equal(gathered.rows_RE, table.weight[[0, 7, 999]])
    assert gathered.rows_RE.is_leaf


def test_rows_lie_where_gather_says():
    table = by_row()
    index = torch.tensor([[8, 0], [3, 8]])
    rows, place = table.gather(index)
    assert place.tolist() == [[2, 0], [1, 2]]
    assert torch.equal(rows[place], table.weight[index])
    # A sum over rows may send the padding row a gradient: it is not one to take.
    rows.sum().backward()
    taken = table.take_gradient()
    assert taken is not None and taken.index_R.tolist() == [3, 8]


def test_several_forward_passes_add_up():
    table = by_row(size=8, width=1)
    table(torch.tensor([1, 5])).sum().backward()
    (10 * table(torch.tensor([5, 6], dtype=torch.int32))).sum().backward()
    table(torch.tensor([3]))  # without a backward pass
    (gradient,) = table.gradients()
    assert gradient.flatten().tolist() == [1.0, 11.0, 10.0]  # rows 1, 5 and 6: row 5 is there once
    gradient.mul_(0.5)  # as clipping does
    (100 * table(torch.tensor([6]))).sum().backward()
    taken = table.take_gradient()
    assert taken is not None
    assert taken.index_R.tolist() == [1, 5, 6]
    assert taken.gradient_RE.flatten().tolist() == [0.5, 5.5, 105.0]
    assert table.gradients() == []


def test_what_is_dropped_does_not_come_back():
    table = by_row()
    table(torch.tensor([4])).sum().backward()
    table.gradients()
    table(torch.tensor([5])).sum().backward()
    table.drop_gradient()
    assert table.take_gradient() is None


def test_scoring_gathers_nothing():
    table = by_row()
    with torch.no_grad():
        table(torch.tensor([1]))
    table.eval()
    assert torch.equal(table(torch.tensor([1])), table.weight[[1]])
    assert table.gathered == []


@pytest.mark.parametrize("index", [-1, 9])
def test_an_index_outside_the_table_is_an_error(index: int):
    with pytest.raises(IndexError):
        by_row(size=9)(torch.tensor([1, index]))
