"""What a model may know of a feature set: its fields, their sizes and kinds. No data, no paths."""

from __future__ import annotations

from typing import Literal

from features.contract.settings import Settings

PADDING = 0
UNKNOWN = 1
FIRST_VALUE = 2


class Field(Settings):
    """One encoded column.

    `categorical` and `tags` are int32 indices below `size` (0 padding, 1 unknown or missing, values
    from 2); `tags` are `max_len` wide, padded with 0. `numeric` is float32, standardised, NaN = missing; `edges` are
    quantiles of its training values, ascending, as the column is encoded.
    """

    name: str
    kind: Literal["categorical", "tags", "numeric"]
    size: int = 0
    max_len: int = 1
    edges: tuple[float, ...] = ()


class VectorSet(Settings):
    """One set of item vectors, after normalising and reducing; not `complete`: some items lack one."""

    name: str
    width: int
    complete: bool = True


class Schema(Settings):
    """All fields of a feature set, by the side they stand on.

    `item` and `user` fields are columns of the item and user tables, their id first; `context` fields
    are row columns; `candidate` fields are numbers of the target as of the row's time (item counters), one
    a candidate in a request; `event` fields are carried by each history event; `items` and `users` count table
    rows (with padding row 0 and unknown row 1); `labels` are further targets of each row beside the click, NaN where
    unknown.
    """

    items: int
    users: int
    item: tuple[Field, ...]
    user: tuple[Field, ...]
    context: tuple[Field, ...] = ()
    candidate: tuple[Field, ...] = ()
    event: tuple[Field, ...] = ()
    vectors: tuple[VectorSet, ...] = ()
    labels: tuple[str, ...] = ()
    history_max_len: int
