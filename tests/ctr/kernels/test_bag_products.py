from __future__ import annotations

import pytest
import torch

from ctr.kernels import bag_products
from ctr.kernels.bag_products import RowBags

TABLE = torch.tensor([[0.0, 0.0], [1.0, 2.0], [3.0, -1.0]])
INDEX = torch.tensor([[0, 1, 2], [2, 2, 0]])


@pytest.fixture(autouse=True, params=[0, bag_products.FEW_ROWS], ids=["many_rows", "few_rows"])
def few_rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    """Tables of either way of computing, however small."""
    monkeypatch.setattr(bag_products, "FEW_ROWS", request.param)


def test_hand_worked_numbers():
    bags = RowBags(TABLE, INDEX)
    query = torch.tensor([[1.0, 1.0], [2.0, 0.0]])
    assert bags.dots(query).tolist() == [[0.0, 3.0, 2.0], [6.0, 6.0, 0.0]]
    weights = torch.tensor([[5.0, 1.0, 2.0], [1.0, 0.5, 9.0]])
    assert bags.sums(weights).tolist() == [[7.0, 0.0], [4.5, -1.5]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("rows", [12, 24, 25, 40])
def test_values_and_gradients_are_those_of_gathered_rows(dtype: torch.dtype, index_dtype: torch.dtype, rows: int):
    """Of tables with fewer and with more rows than are named."""
    torch.manual_seed(0)
    # Rows from 7 on are never named, at the end of the table, and row 3 never, inside it.
    table = torch.randn(rows, 5, dtype=dtype, requires_grad=True)
    index = torch.randint(0, 7, (6, 4), dtype=index_dtype)
    index[index == 3] = 2
    query = torch.randn(6, 5, dtype=dtype, requires_grad=True)
    weights = torch.randn(6, 4, dtype=dtype, requires_grad=True)
    bags, gathered = RowBags(table, index), table[index.long()]
    dots, sums = torch.randn(6, 4, dtype=dtype), torch.randn(6, 5, dtype=dtype)
    pairs = [
        (bags.dots(query), torch.einsum("bsd,bd->bs", gathered, query), (table, query), dots),
        (bags.sums(weights), torch.einsum("bs,bsd->bd", weights, gathered), (table, weights), sums),
    ]
    for ours, theirs, inputs, cotangent in pairs:
        torch.testing.assert_close(ours, theirs)
        expected = torch.autograd.grad(theirs, inputs, cotangent, retain_graph=True)
        for one, other in zip(torch.autograd.grad(ours, inputs, cotangent), expected, strict=True):
            torch.testing.assert_close(one, other)


def test_gradients_of_attention_through_both_products():
    """A score decides a weight, and the weight a sum: as attention uses them."""
    torch.manual_seed(1)
    table = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    query = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    index = torch.randint(0, 6, (4, 5))

    def interest(table: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
        bags = RowBags(table, index)
        return bags.sums(bags.dots(query).sigmoid())

    assert torch.autograd.gradcheck(interest, (table, query))


def test_lists_without_positions_are_empty_sums():
    bags = RowBags(TABLE, torch.empty(2, 0, dtype=torch.int32))
    assert bags.dots(torch.ones(2, 2)).shape == (2, 0)
    assert bags.sums(torch.empty(2, 0)).tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_under_autocast_gradients_come_back_to_a_table_in_single_precision():
    torch.manual_seed(0)
    table = torch.randn(9, 16, requires_grad=True)
    index = torch.randint(0, 9, (40, 6), dtype=torch.int32)
    query = torch.randn(40, 16)

    def gradient(half: bool) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            bags = RowBags(table, index)
            sums = bags.sums(torch.relu(bags.dots(query)))
        assert sums.dtype == (torch.bfloat16 if half else torch.float32)
        return torch.autograd.grad(sums.float().square().sum(), table)[0]

    exact, rounded = gradient(False), gradient(True)
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).norm() < 0.02 * exact.norm()


def test_an_index_outside_a_table_of_few_rows_is_an_error(monkeypatch: pytest.MonkeyPatch):
    """That of a larger one is found by the loader, and by compiled code with checks of bounds."""
    monkeypatch.setattr(bag_products, "FEW_ROWS", len(TABLE))
    bags = RowBags(TABLE, torch.tensor([[0, 3]]))
    with pytest.raises(RuntimeError, match="index 3 is out of bounds for dimension 1 with size 3"):
        bags.dots(torch.ones(1, 2))
    with pytest.raises(RuntimeError, match="index 3 is out of bounds for dimension 1 with size 3"):
        bags.sums(torch.ones(1, 2))
