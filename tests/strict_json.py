"""JSON as programs of other languages read it: NaN and Infinity are none."""

from __future__ import annotations

import json
from typing import Any


def strict(text: str) -> Any:
    """The content of a JSON text. Raises ValueError for a number that JSON does not have."""

    def refused(name: str) -> None:
        raise ValueError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refused)
