"""The calibrator at the end of a model: a rising, piecewise linear function of the logit.

Shapes: N rows, K bends.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

BENDS = 25


@dataclass(frozen=True)
class Curve:
    """`f(l) = slope l + shift + Σ_k bends_k ReLU(l - at_k)`: a line with K bends.

    Args:
        slope, shift: of the line before the first bend.
        at: logits where it bends, ascending, float64 [K].
        bends: change of slope there, float64 [K].
    """

    slope: float = 1.0
    shift: float = 0.0
    at: np.ndarray = field(default_factory=lambda: np.zeros(0))
    bends: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        """Calibrated logits, [N]."""
        bent = np.maximum(logits[:, None] - self.at, 0) @ self.bends
        return np.asarray(self.slope * logits + self.shift + bent)


class Calibrator(nn.Module):
    """A `Curve` as buffers of the model: saved with it, exported with it. It starts as the identity."""

    slope: Tensor
    shift: Tensor
    at: Tensor
    bends: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("slope", torch.ones(()))
        self.register_buffer("shift", torch.zeros(()))
        self.register_buffer("at", torch.zeros(BENDS))
        self.register_buffer("bends", torch.zeros(BENDS))

    def set(self, curve: Curve) -> None:
        """Take another curve, of at most 25 bends."""
        with torch.no_grad():
            self.slope.fill_(curve.slope)
            self.shift.fill_(curve.shift)
            self.at.zero_()
            self.bends.zero_()
            self.at[: len(curve.at)] = torch.from_numpy(curve.at).to(self.at)
            self.bends[: len(curve.bends)] = torch.from_numpy(curve.bends).to(self.bends)

    def forward(self, logit_N: Tensor) -> Tensor:
        """Calibrated logits, [N]."""
        bent_N = torch.relu(logit_N.unsqueeze(-1) - self.at) @ self.bends
        return self.slope * logit_N + self.shift + bent_N
