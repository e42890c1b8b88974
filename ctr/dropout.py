"""Dropout for wide layers on a CPU: random numbers of 16 bits, masks of one byte, nothing wide kept between steps.

torch draws a float for each value it may drop, which takes longer than the half-precision matrix product before it.

Shapes: B rows, X width, R linear rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# A drop probability is a multiple of 1/65536; what is kept is scaled by exactly that probability's inverse, so that
# dropout stays unbiased. Four such numbers come from one draw of torch's default generator.
LEVELS = 2**16
# Rows handled at a time, so that what lies between two matrix products stays in a core's cache.
CHUNK_ROWS = 512


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """`x` with each value zero with probability `p`, the others scaled by `1 / (1 - p)`; `x` where not training."""
    if not training or p == 0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, p)
    dropped: Tensor = _Dropout.apply(x, p)
    return dropped


def dropped_rows(z_BX: Tensor, weight: Tensor, bias: Tensor, p: float) -> Tensor:
    """`Σ_r Drop(W_r z + b_r)`, [B, X]: dropout as in training, each of the R rows with noise of its own.

    Args:
        z_BX: input.
        weight: the rows on top of each other, [R X, X].
        bias: [R X].
        p: probability of dropping a value of a row, above 0.
    """
    rows = len(bias) // z_BX.shape[1]
    if z_BX.device.type != "cpu":
        return F.dropout(F.linear(z_BX, weight, bias), p).view(len(z_BX), rows, -1).sum(1)
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else z_BX.dtype
    total: Tensor = _DroppedRows.apply(z_BX, weight, bias, p, dtype)
    return total


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        kept = torch.empty(x.shape, dtype=torch.bool)
        for chunk in kept.split(CHUNK_ROWS):
            _draw(chunk, p)
        ctx.save_for_backward(kept)
        ctx.scale = _scale(p)
        return (x * ctx.scale).mul_(kept)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return (gradient * ctx.scale).mul_(kept), None


class _DroppedRows(torch.autograd.Function):
    """The product [B, R X] exists for a few rows at a time; of what is wide, only the mask's bytes are kept."""

    @staticmethod
    def forward(ctx: Any, z_BX: Tensor, weight: Tensor, bias: Tensor, p: float, dtype: torch.dtype) -> Tensor:
        width = z_BX.shape[1]
        z = z_BX.to(dtype)
        # Scaled weights make scaled rows.
        scaled_weight, scaled_bias = (weight * _scale(p)).to(dtype), (bias * _scale(p)).to(dtype)
        total_BX = torch.empty(len(z), width, dtype=dtype)
        kept = torch.empty(len(z), len(bias), dtype=torch.bool)
        linear = torch.empty(min(len(z), CHUNK_ROWS), len(bias), dtype=dtype)
        for start in range(0, len(z), CHUNK_ROWS):
            chunk = slice(start, min(start + CHUNK_ROWS, len(z)))
            rows = linear[: chunk.stop - chunk.start]
            torch.addmm(scaled_bias, z[chunk], scaled_weight.T, out=rows)
            rows.mul_(_draw(kept[chunk], p))
            torch.sum(rows.view(len(rows), -1, width), 1, out=total_BX[chunk])
        ctx.save_for_backward(z, scaled_weight, kept)
        ctx.scale, ctx.input_dtype, ctx.weight_dtype = _scale(p), z_BX.dtype, weight.dtype
        return total_BX

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_BX: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        z, scaled_weight, kept = ctx.saved_tensors
        of_rows = gradient_BX.unsqueeze(1) * kept.view(len(z), -1, z.shape[1])
        of_linear = of_rows.view(len(z), -1)
        of_weight = (of_linear.T @ z).to(ctx.weight_dtype).mul_(ctx.scale)
        of_bias = of_linear.sum(0, dtype=ctx.weight_dtype).mul_(ctx.scale)
        return (of_linear @ scaled_weight).to(ctx.input_dtype), of_weight, of_bias, None, None


def _draw(kept: Tensor, p: float) -> Tensor:
    """Fill a contiguous bool tensor, True with probability `1 - p`; returns it."""
    draws = torch.empty(-(-kept.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    numbers = draws.view(torch.int16)[: kept.numel()].view(kept.shape)
    return torch.ge(numbers, _dropped_levels(p) - LEVELS // 2, out=kept)


def _dropped_levels(p: float) -> int:
    return max(1, round(p * LEVELS))


def _scale(p: float) -> float:
    return LEVELS / (LEVELS - _dropped_levels(p))
