"""The calibrator at the end of a model: a rising, piecewise linear function of the logit.

Shapes: N rows, K knots.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

MOST_KNOTS = 25


@dataclass(frozen=True)
class Curve:
    """`f(l) = slope l + shift + Σ_k slope_changes_k ReLU(l - knots_k)`: a line with K knots.

    Args:
        slope, shift: of the line before the first knot.
        knots: logits where its slope changes, ascending, float64 [K].
        slope_changes: by how much, float64 [K].
    """

    slope: float = 1.0
    shift: float = 0.0
    knots: np.ndarray = field(default_factory=lambda: np.zeros(0))
    slope_changes: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        """Calibrated logits, [N]."""
        added = np.maximum(logits[:, None] - self.knots, 0) @ self.slope_changes
        return np.asarray(self.slope * logits + self.shift + added)


class Calibrator(nn.Module):
    """A `Curve` as buffers of the model: saved with it, exported with it. It starts as the identity."""

    slope: Tensor
    shift: Tensor
    knots: Tensor
    slope_changes: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("slope", torch.ones(()))
        self.register_buffer("shift", torch.zeros(()))
        self.register_buffer("knots", torch.zeros(MOST_KNOTS))
        self.register_buffer("slope_changes", torch.zeros(MOST_KNOTS))

    def set(self, curve: Curve) -> None:
        """Take another curve, of at most 25 knots."""
        with torch.no_grad():
            self.slope.fill_(curve.slope)
            self.shift.fill_(curve.shift)
            self.knots.zero_()
            self.slope_changes.zero_()
            self.knots[: len(curve.knots)] = torch.from_numpy(curve.knots).to(self.knots)
            self.slope_changes[: len(curve.slope_changes)] = torch.from_numpy(curve.slope_changes).to(
                self.slope_changes
            )

    def forward(self, logit_N: Tensor) -> Tensor:
        """Calibrated logits, [N]."""
        added_N = torch.relu(logit_N.unsqueeze(-1) - self.knots) @ self.slope_changes
        return self.slope * logit_N + self.shift + added_N
