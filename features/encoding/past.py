"""One event of a user's past as the log has it: what requests, stores of pasts and the served log hand over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class PastEvent:
    """One event of a user.

    Args:
        item: raw item id.
        time: µs since 1970, UTC.
        columns: raw columns of the log by name, as far as known.
    """

    item: Any
    time: int
    columns: Mapping[str, Any] = field(default_factory=dict)
