"""JSON for other programs: a number that JSON does not have is null."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any


def json_text(content: Any, indent: int | None = None) -> str:
    """`content` as JSON. NaN and the infinities, which Python would write as such, are null.

    Example:
        >>> json_text({"auc": float("nan")})
        '{"auc": null}'
    """
    return json.dumps(_finite(content), indent=indent, allow_nan=False)


def _finite(content: Any) -> Any:
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, Sequence) and not isinstance(content, str):
        return [_finite(value) for value in content]
    return content
