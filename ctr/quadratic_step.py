"""One quadratic layer in training on a CPU: forwards and backwards in as few passes over memory as batch norm allows.

The equations are those of `ctr.quadratic.QuadraticLayer`; only what is kept and in which order it is computed differs.
A few rows at a time go through all of a pass while they are in the cache. Of the [B, R X] linear rows only the mask is
kept, of the rest the input z and the sum s of the rows; everything else is computed again on the way back.

Shapes: B rows, X width, R linear rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ctr.masks import draw_mask, keep, keep_scale

CHUNK_ROWS = 512


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

    Under autocast, matrix products and the rows they make are in its precision; sums over rows, batch norm, z and the
    gradients of all parameters stay in that of `z_BX`.

    Args:
        z_BX: the layer's input.
        weight: the rows on top of each other, [R X, X].
        bias: [R X].
        norm: its running statistics take this batch in.
        slope: of PReLU, [1].
        row_dropout: probability of dropping a value of a row.
        dropout: probability of dropping a value of the addition.
    """
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else z_BX.dtype
    with torch.autocast("cpu", enabled=False):
        out: Tensor = _QuadraticStep.apply(
            z_BX, weight, bias, norm.weight, norm.bias, slope, norm, row_dropout, dropout, dtype
        )
    return out


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
        # Scaled weights make scaled rows: what is kept of them needs no product of its own.
        row_scale = keep_scale(row_dropout)
        scaled_weight, scaled_bias = (weight * row_scale).to(dtype), (bias * row_scale).to(dtype)
        s_BX = torch.empty(batch, width, dtype=dtype)
        row_mask = torch.empty(batch, len(bias) if row_dropout else 0, dtype=torch.int16)
        a, narrow, rows = _scratch(batch, (width, z_BX.dtype), (width, dtype), (len(bias), dtype))
        moments = _Moments(width)
        for z, s, mask in _chunks(z_BX, s_BX, row_mask):
            of = slice(len(z))
            linear = s if len(bias) == width else rows[of]
            torch.addmm(scaled_bias, narrow[of].copy_(z), scaled_weight.T, out=linear)
            if row_dropout:
                keep(linear, draw_mask(mask, row_dropout))
            if linear is not s:
                torch.sum(linear.view(len(z), -1, width), 1, out=s)
            moments.add(a[of].copy_(s).mul_(z))
        mean, variance = moments.mean(z_BX.dtype), moments.variance(z_BX.dtype)
        _note(norm, mean, variance, batch)

        scale = torch.rsqrt(variance + norm.eps)
        # PReLU(c x) = c PReLU(x) for c > 0: the scale of what is kept disappears into batch norm.
        addition_scale = keep_scale(dropout)
        scaled_gamma, scaled_beta = gamma * scale * addition_scale, beta * addition_scale
        out_BX = torch.empty_like(z_BX)
        mask_BX = torch.empty(batch, width if dropout else 0, dtype=torch.int16)
        for z, s, mask, out in _chunks(z_BX, s_BX, mask_BX, out_BX):
            addition = a[: len(z)].copy_(s).mul_(z).sub_(mean).mul_(scaled_gamma).add_(scaled_beta)
            F.leaky_relu_(addition, slope.item())
            if dropout:
                keep(addition, draw_mask(mask, dropout))
            torch.add(z, addition, out=out)
        ctx.save_for_backward(
            z_BX, s_BX, row_mask, mask_BX, scaled_weight, slope, mean, scale, scaled_gamma, scaled_beta
        )
        ctx.scales = row_scale, addition_scale
        return out_BX

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_BX: Tensor) -> tuple[Tensor | None, ...]:
        z_BX, s_BX, row_mask, mask_BX, scaled_weight, slope, mean, scale, scaled_gamma, scaled_beta = ctx.saved_tensors
        row_scale, addition_scale = ctx.scales
        batch, width = z_BX.shape
        dtype = s_BX.dtype
        a, b, c, narrow = _scratch(batch, *[(width, z_BX.dtype)] * 3, (width, dtype))
        # First pass: to the output of batch norm, and the three sums over rows that its gradient needs.
        of_norm_BX = torch.empty_like(z_BX)
        of_slope, of_beta, of_gamma = (torch.zeros(size, dtype=torch.float64) for size in (1, width, width))
        for z, s, mask, gradient, of_norm in _chunks(z_BX, s_BX, mask_BX, gradient_BX, of_norm_BX):
            of = slice(len(z))
            centred = a[of].copy_(s).mul_(z).sub_(mean)
            normal = torch.mul(centred, scaled_gamma, out=b[of]).add_(scaled_beta)
            of_addition = c[of].copy_(gradient)
            if mask.shape[1]:
                keep(of_addition, mask)
            torch.ops.aten.leaky_relu_backward.grad_input(of_addition, normal, slope.item(), False, grad_input=of_norm)
            of_slope += torch.dot(normal.clamp_(max=0).view(-1), of_addition.view(-1))
            of_beta += of_norm.sum(0)
            of_gamma += centred.mul_(of_norm).sum(0)
        # dh = scaled_gamma (dn - mean(dn) - centred scale^2 mean(dn centred))
        shift = (scaled_gamma * of_beta / batch).to(z_BX.dtype)
        slant = (scaled_gamma * scale.square() * of_gamma / batch).to(z_BX.dtype)

        # Second pass: to the rows and the input.
        of_linear_BRX = torch.empty(batch, len(scaled_weight), dtype=dtype)
        narrow_z_BX = torch.empty(batch, width, dtype=dtype)
        of_bias = torch.zeros(len(scaled_weight), dtype=torch.float64)
        of_z_BX = torch.empty_like(z_BX)
        for z, s, mask, gradient, of_norm, of_linear, narrow_z, of_z in _chunks(
            z_BX, s_BX, row_mask, gradient_BX, of_norm_BX, of_linear_BRX, narrow_z_BX, of_z_BX
        ):
            of = slice(len(z))
            wide_s = a[of].copy_(s)
            sloped = torch.mul(wide_s, z, out=b[of]).sub_(mean).mul_(slant)
            of_h = of_norm.mul_(scaled_gamma).sub_(shift).sub_(sloped)
            of_rows = narrow[of].copy_(torch.mul(of_h, z, out=b[of]))
            of_linear.view(len(z), -1, width).copy_(of_rows.unsqueeze(1))
            if mask.shape[1]:
                keep(of_linear, mask)
            of_bias += of_linear.sum(0, dtype=z.dtype)
            of_z.copy_(torch.mm(of_linear, scaled_weight, out=narrow[of]))
            of_z.add_(gradient).addcmul_(of_h, wide_s)
            narrow_z.copy_(z)
        of_weight = (of_linear_BRX.T @ narrow_z_BX).to(z_BX.dtype)
        return (
            of_z_BX,
            of_weight.mul_(row_scale),
            of_bias.mul_(row_scale).to(z_BX.dtype),
            (of_gamma * scale * addition_scale).to(z_BX.dtype),
            (of_beta * addition_scale).to(z_BX.dtype),
            of_slope.to(z_BX.dtype),
            *(None,) * 4,
        )


class _Moments:
    """Mean and variance of each column of rows that come in chunks, around a first guess so that nothing cancels."""

    def __init__(self, width: int) -> None:
        self._rows = 0
        self._guess: Tensor | None = None
        self._sum, self._squares = (torch.zeros(width, dtype=torch.float64) for _ in range(2))

    def add(self, h: Tensor) -> None:
        """Rows more; `h` is overwritten."""
        if self._guess is None:
            self._guess = h.mean(0)
        h.sub_(self._guess)
        self._rows += len(h)
        self._sum += h.sum(0)
        self._squares += h.square_().sum(0)

    def mean(self, dtype: torch.dtype) -> Tensor:
        """Of all rows so far."""
        assert self._guess is not None
        return (self._guess + self._sum / self._rows).to(dtype)

    def variance(self, dtype: torch.dtype) -> Tensor:
        """Of all rows so far, divided by their number."""
        return (self._squares / self._rows - (self._sum / self._rows).square()).clamp_(min=0).to(dtype)


def _note(norm: nn.BatchNorm1d, mean: Tensor, variance: Tensor, batch: int) -> None:
    """Move the running statistics as torch does: towards this batch's, its variance divided by B - 1."""
    assert norm.running_mean is not None and norm.running_var is not None and norm.momentum is not None
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), norm.momentum)
    norm.running_var.lerp_((variance * (batch / (batch - 1))).to(norm.running_var.dtype), norm.momentum)
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)


def _scratch(batch: int, *columns: tuple[int, torch.dtype]) -> list[Tensor]:
    """Room for the rows of one chunk: used again and again, it stays in the cache."""
    return [torch.empty(min(batch, CHUNK_ROWS), width, dtype=dtype) for width, dtype in columns]


def _chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(tensor.split(CHUNK_ROWS) for tensor in tensors), strict=True)
