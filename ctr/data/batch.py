"""The one batch type that loader, models and export agree on: ids only, distinct items built once.

Shapes: B rows, S history positions (newest last, padding in front), U distinct items in the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from features.errors import DataError


@dataclass(frozen=True)
class Batch:
    """Rows as indices into small tables; no feature of an item is in here, only where it lies.

    Args:
        items_U: int32, distinct item rows; `items_U[0]` is always 0, the padding item.
        target_B: int32, where each row's target stands in `items_U`.
        history_BS: int32, where each history item stands in `items_U`; 0 is padding.
        events: event columns (int32 or float32 [B, S], 0 at padding) by field name.
        user_B: int32, user rows.
        context: context columns, int32 or float32 [B], by field name.
        candidate: numbers of the target as of the row's time, float32 [B], by field name.
        item_versions_U: int32, where the columns of `items_U` stand that change with time: rows of the stacked table
            (`features.store.versions`). None: as the table has them now, which is what a server reads. An item is in
            `items_U` once for each of its versions.
        user_versions_B: the same for `user_B`.
        label_B: float32, 0 or 1.
        weight_B: float32, ones where the log has no weights.
        labels: further targets, float32 [B] by name: 0, 1, or NaN where unknown.
        list_B: int32, number of the row's request among those of the batch, from 0. None where nobody asked for it.
    """

    items_U: Tensor
    target_B: Tensor
    history_BS: Tensor
    user_B: Tensor
    label_B: Tensor
    weight_B: Tensor
    events: dict[str, Tensor] = field(default_factory=dict)
    context: dict[str, Tensor] = field(default_factory=dict)
    candidate: dict[str, Tensor] = field(default_factory=dict)
    labels: dict[str, Tensor] = field(default_factory=dict)
    item_versions_U: Tensor | None = None
    user_versions_B: Tensor | None = None
    list_B: Tensor | None = None

    def __len__(self) -> int:
        return len(self.target_B)

    def validate(self) -> None:
        """Check shapes and index ranges. Raises DataError naming the field that is wrong."""
        rows = len(self)
        one_a_row = {
            "user_B": self.user_B,
            "label_B": self.label_B,
            "weight_B": self.weight_B,
            **self.context,
            **self.candidate,
            **self.labels,
            **({} if self.user_versions_B is None else {"user_versions_B": self.user_versions_B}),
            **({} if self.list_B is None else {"list_B": self.list_B}),
        }
        for name, values in one_a_row.items():
            if values.shape != (rows,):
                raise DataError(f"{name}: expected shape ({rows},), got {tuple(values.shape)}")
        for name, values in self.events.items():
            if values.shape != self.history_BS.shape:
                raise DataError(f"{name}: expected the shape of history_BS, got {tuple(values.shape)}")
        if self.items_U[0] != 0:
            raise DataError("items_U: the first distinct item must be the padding item 0")
        if self.item_versions_U is not None and self.item_versions_U.shape != self.items_U.shape:
            raise DataError(
                f"item_versions_U: expected the shape of items_U, {tuple(self.items_U.shape)}, got "
                f"{tuple(self.item_versions_U.shape)}"
            )
        for name, values in {"target_B": self.target_B, "history_BS": self.history_BS}.items():
            if values.numel() and not (int(values.min()) >= 0 and int(values.max()) < len(self.items_U)):
                raise DataError(f"{name}: indices outside the {len(self.items_U)} distinct items")
        if self.list_B is not None and rows and not (int(self.list_B.min()) >= 0 and int(self.list_B.max()) < rows):
            raise DataError(f"list_B: numbers outside 0 to {rows - 1}")

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The same batch with each tensor changed."""
        return replace(
            self,
            items_U=change(self.items_U),
            target_B=change(self.target_B),
            history_BS=change(self.history_BS),
            user_B=change(self.user_B),
            label_B=change(self.label_B),
            weight_B=change(self.weight_B),
            events={name: change(values) for name, values in self.events.items()},
            context={name: change(values) for name, values in self.context.items()},
            candidate={name: change(values) for name, values in self.candidate.items()},
            labels={name: change(values) for name, values in self.labels.items()},
            item_versions_U=None if self.item_versions_U is None else change(self.item_versions_U),
            user_versions_B=None if self.user_versions_B is None else change(self.user_versions_B),
            list_B=None if self.list_B is None else change(self.list_B),
        )
