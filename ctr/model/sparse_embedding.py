"""An embedding table of which a step reads, differentiates and later updates only the rows that its batch names.

The gradient of `nn.Embedding` is as large as its table; as a sparse tensor it is small, but slow to coalesce and
refused by gradient clipping. Here the rows that a batch names are copied into a small dense leaf of their own.

Shapes: `...` a leading shape of any rank, R distinct rows, E embedding width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from features.store.schema import PADDING

# Wide enough that products of two embeddings survive BatchNorm's eps of 1e-5 in the first quadratic layer
# (FuxiCTR's 1e-4 does not), small enough that an id seen never or once adds little noise.
INITIAL_STD = 1e-2


@dataclass(frozen=True)
class GatheredRows:
    """The rows that one forward pass read.

    Args:
        index_R: their distinct indices, ascending; the first is always the padding row.
        rows_RE: a copy of them, the leaf that takes their gradient.
    """

    index_R: Tensor
    rows_RE: Tensor


@dataclass(frozen=True)
class RowGradient:
    """The gradient of some rows of a table; that of all others is zero.

    Args:
        index_R: distinct indices, ascending, without the padding row.
        gradient_RE: float32, one row each.
    """

    index_R: Tensor
    gradient_RE: Tensor


class RowTable(nn.Embedding):
    """An embedding table whose row 0 is padding: zeros, and never moved.

    With `by_row` set, training gathers the distinct rows of each index into a leaf and differentiates that: time and
    memory follow the rows touched, not the size of the table, and `weight` gets no gradient.
    `ctr.training.sparse_optimizer` turns what was gathered into updates. Otherwise it is an `nn.Embedding`.

    Args:
        size: rows of the table, padding included.
        width: E, numbers a row.

    Example:
        >>> table = RowTable(1_000_000, 8)
        >>> table.by_row = True
        >>> table(torch.tensor([7, 0, 7])).sum().backward()
        >>> table.take_gradient().index_R
        tensor([7])
    """

    def __init__(self, size: int, width: int) -> None:
        super().__init__(size, width, padding_idx=PADDING)
        self.by_row = False
        self.gathered: list[GatheredRows] = []
        self._gradient: RowGradient | None = None

    def reset_parameters(self) -> None:
        """Draw all rows anew from N(0, INITIAL_STD²), padding zeros."""
        with torch.no_grad():
            nn.init.normal_(self.weight, std=INITIAL_STD)
            self.weight[PADDING].zero_()

    def forward(self, index: Tensor) -> Tensor:
        """Rows of int32 or int64 [...], [..., E]. Raises IndexError at an index outside the table."""
        rows, position = self.gather(index)
        return F.embedding(position, rows, padding_idx=PADDING)

    def gather(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """A table to read, and the positions of the rows of `index` in it: for callers that sum rows without a copy.

        Args:
            index: int32 or int64 [...].

        Returns:
            (rows, position): `rows[position]` are the embeddings; rows [R, E] of this batch, or the whole table. In
            both, row 0 is padding. A gradient that reaches it is dropped.
        """
        if not (self.by_row and self.training and torch.is_grad_enabled()):
            return self.weight, index
        # Padding is added in front, so that it is row 0 of the copy, too.
        named = torch.cat([index.new_full((1,), PADDING), index.flatten()])
        index_R, position = torch.unique(named, return_inverse=True)
        rows_RE = self.weight.detach().index_select(0, index_R).requires_grad_()
        self.gathered.append(GatheredRows(index_R, rows_RE))
        return rows_RE, position[1:].view(index.shape)

    def gradients(self) -> list[Tensor]:
        """The gradient since the last step as tensors to measure and to scale in place; none if there is none yet.

        A row that several forward passes named is in them once, with its sum, as the norm of a gradient asks for.
        """
        parts = [] if self._gradient is None else [self._gradient]
        for one in self.gathered:
            gradient_RE = one.rows_RE.grad
            if gradient_RE is not None and len(gradient_RE) > 1:
                parts.append(RowGradient(one.index_R[1:], gradient_RE[1:]))
        self.gathered.clear()
        if not parts:
            return []
        self._gradient = parts[0] if len(parts) == 1 else _sum_by_row(parts)
        return [self._gradient.gradient_RE]

    def take_gradient(self) -> RowGradient | None:
        """The sum of the gradients since it was last taken or dropped, or None; begins the next step."""
        self.gradients()
        taken, self._gradient = self._gradient, None
        return taken

    def drop_gradient(self) -> None:
        """Forget what was gathered and its gradients."""
        self.gathered.clear()
        self._gradient = None


def _sum_by_row(parts: list[RowGradient]) -> RowGradient:
    index_R, position = torch.unique(torch.cat([part.index_R for part in parts]), return_inverse=True)
    gradients = torch.cat([part.gradient_RE for part in parts])
    total_RE = gradients.new_zeros(len(index_R), gradients.shape[1])
    return RowGradient(index_R, total_RE.index_add_(0, position, gradients))
