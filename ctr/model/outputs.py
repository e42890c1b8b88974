"""The outputs of a model for a batch: the logit of the click and those of further tasks.

Shapes: B rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Outputs:
    """One forward pass.

    Args:
        click_B: logits.
        tasks: logits [B] of further labels, by name.
    """

    click_B: Tensor
    tasks: dict[str, Tensor] = field(default_factory=dict)
