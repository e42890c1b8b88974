"""Checks of ids and raw values as they come from JSON, a column at a time; messages name the value that is wrong."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import Annotated, Any, Self

import msgspec
import numpy as np

from features.contract.columns import ColumnSpec
from features.contract.settings import unknown_key
from features.errors import ConfigError

LARGEST = sys.float_info.max  # JSON has whole numbers beyond it
WHOLE = list[Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]]
TEXTS = list[str]


class WholeIds(tuple[int, ...]):
    """Ids that are whole numbers from 0 on, of 63 bits.

    Attributes:
        numbers: the same, int64 [N]: what is looked up needs no further pass over Python's numbers.
    """

    numbers: np.ndarray

    def __new__(cls, values: list[int]) -> Self:
        """Ids of a list."""
        ids = super().__new__(cls, values)
        ids.numbers = np.fromiter(values, np.int64, len(values))
        return ids


def plain_ids(values: list[Any]) -> tuple[Any, ...] | None:
    """Ids of one type, text or whole numbers that can be ids; None where some are not."""
    # A look at each value's type costs five times as much in Python.
    with suppress(msgspec.ValidationError):
        return WholeIds(msgspec.convert(values, WHOLE))
    with suppress(msgspec.ValidationError):
        return tuple(msgspec.convert(values, TEXTS))
    return None


def ids_at(ids: tuple[Any, ...], place_K: np.ndarray) -> list[Any]:
    """The ids at these places, int [K]."""
    if isinstance(ids, WholeIds):
        return ids.numbers[place_K].tolist()
    return [ids[place] for place in place_K.tolist()]


def ids_of(where: str, values: list[Any], key: str = "") -> tuple[Any, ...]:
    """Ids that can be ones; `where[i]key` names them in messages."""
    ids = plain_ids(values)
    return tuple(id_of(f"{where}[{i}]{key}", value) for i, value in enumerate(values)) if ids is None else ids


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
        sound = types <= {int, float} and finite_numbers(values) is not None
    else:
        sound = not types or (spec.form != "names" and types <= {int, str})
    if sound:
        return tuple(values)
    return tuple(value_of(f"{where}[{i}].{name}", value, spec) for i, value in enumerate(values))


def numbers_of(where: str, name: str, values: list[Any], spec: ColumnSpec) -> np.ndarray:
    """Values of a column of numbers, float64 [N], NaN for missing; true counts as 1, false as 0.

    Raises:
        ConfigError: as `value_of`.
    """
    types = set(map(type, values))
    if types == {type(None)}:
        return np.full(len(values), np.nan)
    if types <= {int, float, bool, type(None)}:
        number_N = finite_numbers(values)
        if number_N is not None:
            return number_N
    as_numbers = [float(value) if isinstance(value, bool) else value for value in values]
    return np.array([value_of(f"{where}[{i}].{name}", value, spec) for i, value in enumerate(as_numbers)], np.float64)


def finite_numbers(values: list[Any]) -> np.ndarray | None:
    """Numbers that may be None, float64 [N], NaN for it; None where one is not finite, or beyond what a float holds."""
    try:
        number_N = np.array(values, np.float64)
    except OverflowError:
        return None
    return number_N if np.count_nonzero(np.isfinite(number_N)) == len(values) - values.count(None) else None


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
