"""Dropout masks on a CPU: a random number of 16 bits decides a value, and bits rather than floats apply it.

torch draws a float for each value it may drop, which takes longer than the half-precision matrix product before it.
"""

from __future__ import annotations

import torch
from torch import Tensor

# A drop probability is a multiple of 1/65536; what is kept is scaled by exactly that probability's inverse, so that
# dropout stays unbiased. Four such numbers come from one draw of torch's default generator.
LEVELS = 2**16
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def draw_mask(mask: Tensor, p: float) -> Tensor:
    """Fill a contiguous int16 tensor: 0 (drop) with probability `p`, else -1 (keep); returns it."""
    draws = torch.empty(-(-mask.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    numbers = draws.view(torch.int16)[: mask.numel()].view(mask.shape)
    return torch.lt(numbers, _dropped_levels(p) - LEVELS // 2, out=mask).sub_(1)


def keep(values: Tensor, mask: Tensor) -> Tensor:
    """Set the floats whose mask is 0 to zero, in place; returns them. NaN is dropped like any number."""
    bits = values.view(_INTEGERS[values.element_size()])
    bits.bitwise_and_(mask if mask.dtype == bits.dtype else mask.to(bits.dtype))
    return values


def keep_scale(p: float) -> float:
    """What makes up for dropping: `1 / (1 - p)` for `p` as it is drawn; 1 where nothing is dropped."""
    return LEVELS / (LEVELS - _dropped_levels(p)) if p > 0 else 1.0


def _dropped_levels(p: float) -> int:
    return max(1, round(p * LEVELS))
