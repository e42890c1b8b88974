"""The last linear function of a tower."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def exact_logits(layer: nn.Linear, z_BX: Tensor) -> Tensor:
    """`layer(z)`, [B, H], in the precision of its weights under autocast, too.

    In half precision a logit has 8 binary digits: it would be off by 0.01 at 4.
    """
    with torch.autocast(z_BX.device.type, enabled=False):
        logit_BH: Tensor = layer(z_BX.to(layer.weight.dtype))
        return logit_BH
