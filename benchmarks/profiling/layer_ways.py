"""One quadratic layer in training, forward and backward: our compiled loops, plain torch, and torch.compile.

    python -m benchmarks.profiling.layer_ways

The ways take turns, and the median of each counts. The equations are those of `ctr.towers.quadratic.QuadraticLayer`.

Shapes: B rows, X width, R linear rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctr.kernels.quadratic_autograd import quadratic_step

DROPOUT = 0.1
WARM_UP = 3


@dataclass(frozen=True)
class Sizes:
    """Of a layer and its batch; `bf16` computes under autocast."""

    batch: int
    width: int
    rows: int
    bf16: bool = False


# The small preset's width of before, and the paper's, in both precisions.
USUAL = (Sizes(1024, 528, 2), Sizes(8192, 1024, 4), Sizes(8192, 1024, 4, bf16=True))


def plain(z_BX: Tensor, weight: Tensor, bias: Tensor, norm: nn.BatchNorm1d, slope: Tensor, p: float) -> Tensor:
    """The layer in operations of torch."""
    rows = F.linear(z_BX, weight, bias).split(z_BX.shape[1], dim=1)
    h_BX = sum((z_BX * F.dropout(row.to(z_BX.dtype), p) for row in rows), torch.zeros_like(z_BX))
    mean_X, variance_X = h_BX.mean(0), h_BX.var(0, unbiased=False)
    n_BX = (h_BX - mean_X) * torch.rsqrt(variance_X + norm.eps) * norm.weight + norm.bias
    return z_BX + F.dropout(torch.where(n_BX > 0, n_BX, slope * n_BX), p)


def layer_ways(sizes: Sizes, repeats: int, compiled: bool = True, dropout: float = DROPOUT) -> dict[str, float]:
    """Milliseconds of a forward and backward pass of each way, medians of so many turns."""
    torch.manual_seed(0)
    z_BX = torch.randn(sizes.batch, sizes.width, requires_grad=True)
    weight = (torch.randn(sizes.rows * sizes.width, sizes.width) / sizes.width).requires_grad_()
    bias = torch.zeros(sizes.rows * sizes.width, requires_grad=True)
    norm, slope = nn.BatchNorm1d(sizes.width), torch.tensor([0.25], requires_grad=True)
    ways: dict[str, Callable[[], Tensor]] = {
        "ours": lambda: quadratic_step(z_BX, weight, bias, norm, slope, dropout, dropout),
        "torch": lambda: plain(z_BX, weight, bias, norm, slope, dropout),
    }
    if compiled:
        fused = torch.compile(plain)
        ways["torch.compile"] = lambda: fused(z_BX, weight, bias, norm, slope, dropout)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(WARM_UP + repeats):
        for name, way in ways.items():
            began = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=sizes.bf16):
                out_BX = way()
            out_BX.square().sum().backward()
            if turn >= WARM_UP:
                times[name].append((time.perf_counter() - began) * 1e3)
            z_BX.grad = weight.grad = bias.grad = None
    return {name: median(of_way) for name, of_way in times.items()}


if __name__ == "__main__":
    for one in USUAL:
        found = layer_ways(one, repeats=40 if one.batch < 4096 else 7)
        told = ", ".join(f"{name} {milliseconds:.1f} ms" for name, milliseconds in found.items())
        print(
            f"{one}: {told}; torch.compile takes {found['torch.compile'] / found['ours']:.2f} times as long", flush=True
        )
