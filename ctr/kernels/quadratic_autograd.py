"""One quadratic layer in training on a CPU: matrix products, and between them as few passes over memory as can be.

The equations are those of `ctr.towers.quadratic.QuadraticLayer`; only what is kept, and the order of computing,
differs. Of the [B, R X] linear rows nothing is kept, of all else the input z (under autocast in both precisions)
and the sum s of the rows.

Shapes: B rows, X width, R linear rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ctr.kernels import quadratic_loops as kernels
from ctr.kernels.runtime import in_threads

# A drop probability is a multiple of 1/65536; what is kept is scaled by exactly that probability's inverse, so that
# dropout stays unbiased.
LEVELS = 2**16


def quadratic_step(
    z_BX: Tensor,
    weight: Tensor,
    bias: Tensor,
    norm: nn.BatchNorm1d,
    slope: Tensor,
    row_dropout: float,
    dropout: float,
) -> Tensor:
    """`z + Drop(PReLU(BN(Σ_r z ⊙ Drop(W_r z + b_r))))`, [B, X], with the statistics of these B rows.

    Under autocast, matrix products and the rows they make are in its precision; sums over rows, batch norm, the result
    and the gradients of all parameters are in that of the weights. torch's default generator decides what is dropped.

    Args:
        z_BX: the layer's input; under autocast it may be in half precision.
        weight: the rows on top of each other, [R X, X].
        bias: [R X].
        norm: its running statistics take this batch in.
        slope: of PReLU, [1].
        row_dropout: probability of dropping a value of a row.
        dropout: probability of dropping a value of the addition.
    """
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else weight.dtype
    with torch.autocast("cpu", enabled=False):
        out: Tensor = _QuadraticStep.apply(
            z_BX.to(weight.dtype).contiguous(),
            weight,
            bias,
            norm.weight,
            norm.bias,
            slope,
            norm,
            row_dropout,
            dropout,
            dtype,
        )
    return out


def dropped_levels(p: float) -> int:
    """Of 65,536 equally likely numbers, how many drop a value."""
    return max(1, round(p * LEVELS)) if p > 0 else 0


def keep_scale(p: float) -> float:
    """What makes up for dropping: `1 / (1 - p)` for `p` as it is drawn."""
    return LEVELS / (LEVELS - dropped_levels(p))


class _QuadraticStep(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        z_BX: Tensor,
        weight: Tensor,
        bias: Tensor,
        gamma: Tensor,
        beta: Tensor,
        slope: Tensor,
        norm: nn.BatchNorm1d,
        row_dropout: float,
        dropout: float,
        dtype: torch.dtype,
    ) -> Tensor:
        batch, width = z_BX.shape
        row_seed, seed = np.uint64(_seed()), np.uint64(_seed())
        # Scaled weights make scaled rows: what is kept of them needs no product of its own.
        row_scale = keep_scale(row_dropout)
        scaled_weight = (weight * row_scale).to(dtype)
        narrow_z_BX = z_BX.to(dtype)
        linear = narrow_z_BX @ scaled_weight.T
        s_BX = torch.empty(batch, width, dtype=dtype)
        sums, squares = in_threads(
            kernels.sum_rows,
            batch,
            (z_BX, linear, bias * row_scale, s_BX),
            (row_seed, dropped_levels(row_dropout)),
            sums=(width, width),
        )
        del linear
        mean = sums / batch
        variance = (squares / batch - mean.square()).clamp_(min=0)
        _note(norm, mean, variance, batch)

        scale = torch.rsqrt(variance + norm.eps)
        # PReLU(c x) = c PReLU(x) for c > 0: the scale of what is kept disappears into batch norm.
        addition_scale = keep_scale(dropout)
        vectors = (mean, gamma * scale * addition_scale, beta * addition_scale)
        mean_X, gamma_X, beta_X = (vector.to(z_BX.dtype) for vector in vectors)
        out_BX = torch.empty_like(z_BX)
        addition = (z_BX, s_BX, mean_X, gamma_X, beta_X), (_scalar(slope), seed, dropped_levels(dropout))
        in_threads(kernels.add_cross, batch, *addition, (out_BX,))
        ctx.save_for_backward(z_BX, narrow_z_BX, s_BX, scaled_weight, slope, scale, mean_X, gamma_X, beta_X)
        ctx.scales, ctx.seeds, ctx.dropouts = (row_scale, addition_scale), (row_seed, seed), (row_dropout, dropout)
        return out_BX

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_BX: Tensor) -> tuple[Tensor | None, ...]:
        z_BX, narrow_z_BX, s_BX, scaled_weight, slope, scale, mean_X, gamma_X, beta_X = ctx.saved_tensors
        (row_scale, addition_scale), (row_seed, seed) = ctx.scales, ctx.seeds
        row_levels, levels = (dropped_levels(p) for p in ctx.dropouts)
        batch, width = z_BX.shape
        given = (
            (z_BX, s_BX, gradient_BX.contiguous(), mean_X, gamma_X, beta_X),
            (_scalar(slope), seed, levels),
        )
        of_slope, of_beta, of_gamma = in_threads(kernels.norm_sums, batch, *given, sums=(width, width, width))
        # dh = gamma' (dn - mean(dn) - (h - mean) scale^2 mean(dn (h - mean)))
        shift = gamma_X * of_beta / batch
        slant = gamma_X * scale.square() * of_gamma / batch
        shift_X, slant_X = shift.to(z_BX.dtype), slant.to(z_BX.dtype)
        of_linear = torch.empty(batch, len(scaled_weight), dtype=s_BX.dtype)
        of_z_BX = torch.empty_like(z_BX)
        (of_bias,) = in_threads(
            kernels.to_rows,
            batch,
            *given,
            (shift_X, slant_X, row_seed, row_levels),
            (of_linear,),
            sums=(len(scaled_weight),),
            after=(of_z_BX,),
        )
        of_weight = (of_linear.T @ narrow_z_BX).to(z_BX.dtype)
        in_threads(kernels.add, batch, (of_linear @ scaled_weight, of_z_BX))
        dtype = z_BX.dtype
        return (
            of_z_BX,
            of_weight.mul_(row_scale),
            of_bias.mul_(row_scale).to(dtype),
            (of_gamma * scale * addition_scale).to(dtype),
            (of_beta * addition_scale).to(dtype),
            of_slope.sum(0, keepdim=True).to(dtype),
            *(None,) * 4,
        )


def _note(norm: nn.BatchNorm1d, mean: Tensor, variance: Tensor, batch: int) -> None:
    """Move the running statistics as torch does: towards this batch's, its variance divided by B - 1."""
    assert norm.running_mean is not None and norm.running_var is not None and norm.momentum is not None
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), norm.momentum)
    norm.running_var.lerp_((variance * (batch / (batch - 1))).to(norm.running_var.dtype), norm.momentum)
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)


def _scalar(slope: Tensor) -> Any:
    return slope.detach().numpy()[0]


def _seed() -> int:
    return int(torch.randint(2**63 - 1, ()).item())
