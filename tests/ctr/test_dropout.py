from __future__ import annotations

import pytest
import torch

from ctr.dropout import dropout, dropped_rows


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_values_are_dropped_as_often_as_asked_and_the_mean_stays(p: float):
    torch.manual_seed(0)
    dropped = dropout(torch.ones(2_000, 503), p, training=True)
    share = (dropped == 0).double().mean().item()
    # A million values: five standard deviations of a share.
    assert abs(share - p) < 5 * (p * (1 - p) / dropped.numel()) ** 0.5
    assert dropped.unique().tolist() == pytest.approx([0.0, 1 / (1 - p)], rel=1e-4)


def test_values_are_dropped_independently():
    torch.manual_seed(0)
    kept = (dropout(torch.ones(3_000, 64), 0.3, training=True) > 0).double()
    correlation = torch.corrcoef(kept.T) - torch.eye(64, dtype=torch.float64)
    # Neighbouring values come from one draw of 64 bits; 2,016 pairs, each within five standard deviations.
    assert correlation.abs().max() < 5 / 3_000**0.5
    both = torch.corrcoef(torch.stack([kept[:-1].flatten(), kept[1:].flatten()]))[0, 1]
    assert abs(both) < 5 / kept.numel() ** 0.5


def test_the_generator_decides_and_goes_on():
    x = torch.randn(40, 9)
    torch.manual_seed(3)
    first, second = dropout(x, 0.5, training=True), dropout(x, 0.5, training=True)
    torch.manual_seed(3)
    assert torch.equal(dropout(x, 0.5, training=True), first)
    assert not torch.equal(first, second)


def test_gradients_pass_where_values_do():
    x = torch.randn(1_100, 3, requires_grad=True)
    dropped = dropout(x, 0.25, training=True)
    (gradient,) = torch.autograd.grad(dropped.sum(), x)
    assert torch.equal(gradient > 0, dropped != 0)


def test_without_training_nothing_is_dropped():
    x = torch.randn(4, 3)
    assert dropout(x, 0.5, training=False) is x
    assert dropout(x, 0.0, training=True) is x


def test_dropped_rows_over_several_chunks_equal_the_written_out_sum():
    torch.manual_seed(0)
    z = torch.randn(1_030, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(12, 4, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(12, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(1)
    kept = dropout(torch.ones(1_030, 12, dtype=torch.float64), 0.2, training=True)
    theirs = ((z @ weight.T + bias) * kept).view(-1, 3, 4).sum(1)
    torch.manual_seed(1)
    ours = dropped_rows(z, weight, bias, 0.2)
    torch.testing.assert_close(ours, theirs)
    cotangent = torch.randn(1_030, 4, dtype=torch.float64)
    expected = torch.autograd.grad(theirs, (z, weight, bias), cotangent)
    for one, other in zip(torch.autograd.grad(ours, (z, weight, bias), cotangent), expected, strict=True):
        torch.testing.assert_close(one, other)
