"""The ways of computing a quadratic layer compute the same, or their times compare nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.profiling.layer_ways import Sizes, layer_ways, plain
from ctr.kernels.quadratic_autograd import quadratic_step


def test_without_dropout_plain_torch_gives_our_output_and_gradients() -> None:
    torch.manual_seed(3)
    weight, bias = torch.randn(12, 6) / 6, torch.randn(12)
    found = []
    for way in ("ours", "torch"):
        leaves = [one.clone().requires_grad_() for one in (torch.linspace(-2, 2, 48).view(8, 6).sin(), weight, bias)]
        norm, slope = nn.BatchNorm1d(6), torch.tensor([0.25], requires_grad=True)
        out = quadratic_step(*leaves, norm, slope, 0.0, 0.0) if way == "ours" else plain(*leaves, norm, slope, 0.0)
        out.square().sum().backward()
        found.append([out.detach(), *(one.grad for one in (*leaves, slope, norm.weight, norm.bias))])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bf16", [False, True])
def test_each_way_is_timed(bf16: bool) -> None:
    found = layer_ways(Sizes(16, 8, 2, bf16), repeats=3, compiled=False)
    assert list(found) == ["ours", "torch"] and all(milliseconds > 0 for milliseconds in found.values())
