"""What a model gives for a batch: the click logit and those of further tasks.

Shapes: B rows, E width.
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
        users: with `align_users`, what a row's past says in content and in ids, [B, E] each.
    """

    click_B: Tensor
    tasks: dict[str, Tensor] = field(default_factory=dict)
    users: tuple[Tensor, Tensor] | None = None
