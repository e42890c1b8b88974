"""Numbers that bend at their edges: by hand, against numpy's interpolation, missing, beyond the edges."""

from __future__ import annotations

import numpy as np
import torch

from ctr.model.numbers import PiecewiseNumbers, StraightNumbers
from features.store.schema import Field

NAN = float("nan")


def number(name: str, *edges: float) -> Field:
    return Field(name=name, kind="numeric", edges=edges)


def with_weight(fields: list[Field], weight: list[list[float]]) -> PiecewiseNumbers:
    """Rows of the weight: pieces of the first column, its missing flag, pieces of the second …; a column each of E."""
    encoder = PiecewiseNumbers(fields, width=len(weight[0]) // min(len(fields), 4))
    with torch.no_grad():
        encoder.weight.copy_(torch.tensor(weight).T)
    return encoder


def test_pieces_by_hand():
    # Two pieces from -1 to 1 to 5; the third row of the weight is of a missing value.
    encoder = with_weight([number("a", -1, 1, 5)], [[1.0, 10.0], [2.0, 20.0], [7.0, 70.0]])
    found = encoder(torch.tensor([[-1.0], [0.0], [1.0], [3.0], [5.0], [NAN]]))
    assert found.tolist() == [[0, 0], [0.5, 5], [1, 10], [2, 20], [3, 30], [7, 70]]


def test_beyond_its_edges_a_number_is_the_edge():
    encoder = with_weight([number("a", -1, 1, 5)], [[1.0], [2.0], [7.0]])
    beyond = encoder(torch.tensor([[-1e30], [1e30], [float("inf")], [float("-inf")]]))
    assert beyond.flatten().tolist() == [0, 3, 3, 0]


def test_columns_add_up_and_have_any_number_of_edges():
    fields = [number("two pieces", 0, 1, 2), number("one value", 4), number("none"), number("one piece", 10, 20)]
    encoder = PiecewiseNumbers(fields, width=3)
    assert encoder.widths == (3, 3, 3, 3)
    base = torch.tensor([[0.5, 4.0, 1.0, 15.0]])

    def noticed(value_4: torch.Tensor) -> list[int]:
        """Which columns change what the encoder says, each alone with its value of these."""
        rows = base.repeat(4, 1)
        rows.diagonal().copy_(value_4)
        return (encoder(rows) != encoder(base)).any(dim=1).nonzero().flatten().tolist()

    # What was constant, or never there, says only whether it is missing.
    assert noticed(base[0] + 0.25) == [0, 3]
    assert noticed(torch.full((4,), NAN)) == [0, 1, 2, 3]


def test_two_columns_by_hand():
    fields = [number("a", 0, 2), number("b", -1, 1)]
    encoder = with_weight(fields, [[1.0, 2.0], [3.0, 4.0], [10.0, 20.0], [30.0, 40.0]])
    found = encoder(torch.tensor([[1.0, 0.0], [NAN, 1.0], [2.0, NAN]]))
    assert found.tolist() == [[5.5, 11], [13, 24], [31, 42]]


def test_many_columns_share_four_blocks():
    encoder = PiecewiseNumbers([number(str(n), 0, 1) for n in range(9)], width=3)
    assert encoder.widths == (3, 3, 3, 3) and encoder(torch.rand(2, 9)).shape == (2, 12)


def test_a_block_is_a_curve_through_its_edges():
    edges = [-2.0, -0.5, 0.25, 3.0]
    encoder = PiecewiseNumbers([number("a", *edges)], width=1)
    weight = encoder.weight.detach()[0, :3].numpy()
    values = np.random.default_rng(0).uniform(-3, 4, 200).astype(np.float32)
    expected = np.interp(values, edges, np.concatenate([[0], np.cumsum(weight)]))
    np.testing.assert_allclose(encoder(torch.from_numpy(values)[:, None]).detach()[:, 0], expected, atol=1e-6)


def test_edges_that_nearly_coincide_give_finite_numbers():
    edge = 1.0
    after = float(np.nextafter(np.float32(edge), np.float32(2)))
    encoder = PiecewiseNumbers([number("a", 0, edge, after), number("b", 0.0, 1e-45)], width=2)
    values = torch.tensor([[edge, 0.0], [after, 1e-45], [3e38, -3e38], [NAN, NAN]])
    found = encoder(values)
    assert torch.isfinite(found).all()
    found.sum().backward()
    assert torch.isfinite(encoder.weight.grad).all()


def test_any_leading_shape():
    encoder = PiecewiseNumbers([number("a", 0, 1), number("b", 0, 2, 3)], width=4)
    values = torch.rand(5, 6, 2)
    found = encoder(values)
    assert found.shape == (5, 6, 8)
    torch.testing.assert_close(found[3, 4:5], encoder(values[3, 4:5]))
    assert encoder(torch.zeros(0, 2)).shape == (0, 8)


def test_missing_numbers_leave_gradients_finite():
    for encoder in (PiecewiseNumbers([number("a", 0, 2)], width=3), StraightNumbers(1, width=3)):
        values = torch.tensor([[NAN], [1.0]], requires_grad=True)
        encoder(values).sum().backward()
        assert torch.isfinite(values.grad).all() and torch.isfinite(encoder.weight.grad).all()
    assert encoder.weight.grad.tolist() == [[1.0, 1.0]] * 3


def test_straight_numbers_share_one_block_of_values_and_missing_flags():
    encoder = StraightNumbers(2, width=1)
    with torch.no_grad():
        encoder.weight.copy_(torch.tensor([[1.0, 10.0, 100.0, 1000.0]]))
    # W [a, b, a is missing, b is missing]
    out = encoder(torch.tensor([[2.0, 3.0], [NAN, 4.0], [NAN, NAN]]))
    torch.testing.assert_close(out, torch.tensor([[32.0], [140.0], [1100.0]]))
    assert encoder.widths == (1,)
