"""Checks of ids and raw values as they come from JSON, a column at a time; messages name the value that is wrong."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import numpy as np

from features.contract.columns import ColumnSpec
from features.contract.settings import unknown_key
from features.errors import ConfigError

LARGEST = sys.float_info.max  # JSON has whole numbers beyond it


def ids_of(where: str, values: list[Any], key: str = "") -> tuple[Any, ...]:
    """Ids that can be ones; `where[i]key` names them in messages."""
    types = set(map(type, values))
    if types == {str} or (types == {int} and min(values) >= 0 and max(values) < 2**63):
        return tuple(values)
    return tuple(id_of(f"{where}[{i}]{key}", value) for i, value in enumerate(values))


def id_of(where: str, value: Any) -> Any:
    """One id. Raises ConfigError for what cannot be one: a fraction, a boolean, a negative number."""
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63):
        return value
    raise ConfigError(
        f"{where}: {value!r} cannot be an id: ids are text or whole numbers from 0 on. Send them as the log has them."
    )


def column_of(where: str, name: str, values: list[Any], spec: ColumnSpec) -> tuple[Any, ...]:
    """Values of a column as its type has them, None for missing.

    The column is checked at once, by the types it holds. Only where that fails are its values looked at one by one, to
    name the first that is wrong.
    """
    types = set(map(type, values)) - {type(None)}
    if spec.form == "number":
        sound = types <= {int, float} and all_finite(values)
    else:
        sound = not types or (spec.form != "names" and types <= {int, str})
    if sound:
        return tuple(values)
    return tuple(value_of(f"{where}[{i}].{name}", value, spec) for i, value in enumerate(values))


def all_finite(values: list[Any]) -> bool:
    """Whether numbers that may be None are all finite, and none is beyond what a float holds."""
    try:
        numbers = np.array(values, np.float64)
    except OverflowError:
        return False
    return int(np.isfinite(numbers).sum()) == len(values) - values.count(None)


def value_of(where: str, value: Any, spec: ColumnSpec) -> Any:
    """One value as a column's type has it. Raises ConfigError, naming `where`, for another one."""
    if value is None:
        return None
    if spec.form == "names":
        if not isinstance(value, list):
            raise ConfigError(f"{where}: tags are a list, got {value!r}.")
        return [_scalar(where, tag) for tag in value]
    if spec.form == "number":
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST:
            raise ConfigError(f"{where}: expected a finite number, got {value!r}.")
        return float(value)
    return _scalar(where, value)


def known_keys(where: str, given: Iterable[Any], valid: Any) -> None:
    """Raise ConfigError for the first key that is not valid, with the nearest one that is."""
    for key in given:
        if key not in valid:
            hint = unknown_key(key, list(valid)) if valid else "None are declared."
            raise ConfigError(f"{where}: unknown key {key!r}. {hint}")


def _scalar(where: str, value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if value is None or isinstance(value, str | int):
        return value
    raise ConfigError(f"{where}: expected text or a whole number, got {value!r}.")
