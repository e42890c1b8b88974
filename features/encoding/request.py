"""What a legal ranking request is. Ids stay raw here; the encoder turns them into rows."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
from pydantic import PositiveInt

from features.contract.columns import ColumnSpec
from features.contract.contract import Contract
from features.contract.settings import Settings, unknown_key
from features.errors import ConfigError

LARGEST = sys.float_info.max  # JSON has whole numbers beyond it
KEYS = ("user", "user_columns", "context", "history", "candidates")
EXAMPLE = 'e.g. {"user": 7, "history": [3, 5], "candidates": [11, 12]}'


class Limits(Settings):
    """Largest request that is answered."""

    max_candidates: PositiveInt = 1000
    max_history: PositiveInt = 10_000


@dataclass(frozen=True)
class Request:
    """One user, their past, and the candidates to rank; all ids and values raw.

    Args:
        candidates: item ids.
        history: item ids, oldest first.
        history_events: for each event column, one value a history item (None where not given).
        user: None for an anonymous one.
        user_columns: raw columns that replace what is known of the user.
        context: raw context columns.
        candidate_columns: for each counter of items, one value a candidate (None where not given).
    """

    candidates: tuple[Any, ...]
    history: tuple[Any, ...] = ()
    history_events: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    user: Any = None
    user_columns: dict[str, Any] = field(default_factory=dict)
    context: dict[str, Any] = field(default_factory=dict)
    candidate_columns: dict[str, tuple[Any, ...]] = field(default_factory=dict)


def parse_request(raw: Any, contract: Contract, limits: Limits | None = None) -> Request:
    """Check a request as it came from JSON.

    Raises:
        ConfigError: an unknown key (nearest valid one named), an id that cannot be one (negative,
            fractional, boolean), no candidates, or more than the limits allow.
    """
    limits = limits or Limits()
    if not isinstance(raw, dict):
        raise ConfigError(f"request: expected a JSON object, got {type(raw).__name__}; {EXAMPLE}.")
    _known_keys("request", raw, KEYS)
    candidates = _list(raw, "candidates")
    if not candidates:
        raise ConfigError(f"request: `candidates` is empty or missing: there is nothing to rank; {EXAMPLE}.")
    _at_most("candidates", candidates, limits.max_candidates)
    history = _list(raw, "history")
    _at_most("history", history, limits.max_history)
    items, events = _entries("history", history, contract.history.columns)
    shown, counters = _entries("candidates", candidates, contract.candidate_columns)
    users = contract.users.columns if contract.users else {}
    return Request(
        candidates=shown,
        history=items,
        history_events=events,
        user=None if raw.get("user") is None else _id("user", raw["user"]),
        user_columns=_columns("user_columns", raw, users),
        context=_columns("context", raw, contract.context_columns),
        candidate_columns=counters,
    )


def _entries(
    where: str, entries: list[Any], declared: Mapping[str, ColumnSpec]
) -> tuple[tuple[Any, ...], dict[str, tuple[Any, ...]]]:
    """Items given as ids, or as objects of `item` and any of the declared columns: the ids, and a tuple a column.

    Each column is checked at once, by the types it holds. Only where that fails are its values looked at one by one,
    to name the first that is wrong.
    """
    if dict not in set(map(type, entries)):
        return _ids(where, entries), {name: (None,) * len(entries) for name in declared}
    given = [entry if isinstance(entry, dict) else {"item": entry} for entry in entries]
    if not {"item", *declared}.issuperset(chain.from_iterable(given)):
        for i, entry in enumerate(given):
            _known_keys(f"{where}[{i}]", entry, ["item", *declared])
    try:
        items = [entry["item"] for entry in given]
    except KeyError:
        i = next(i for i, entry in enumerate(given) if "item" not in entry)
        raise ConfigError(f"{where}[{i}]: needs `item`, e.g. {{'item': 3}}.") from None
    columns = {
        name: _column(where, name, [entry.get(name) for entry in given], spec) for name, spec in declared.items()
    }
    return _ids(where, items, ".item"), columns


def _ids(where: str, values: list[Any], key: str = "") -> tuple[Any, ...]:
    types = set(map(type, values))
    if types == {str} or (types == {int} and min(values) >= 0 and max(values) < 2**63):
        return tuple(values)
    return tuple(_id(f"{where}[{i}]{key}", value) for i, value in enumerate(values))


def _column(where: str, name: str, values: list[Any], spec: ColumnSpec) -> tuple[Any, ...]:
    types = set(map(type, values)) - {type(None)}
    if spec.form == "number":
        sound = types <= {int, float} and _all_finite(values)
    else:
        sound = not types or (spec.form != "names" and types <= {int, str})
    if sound:
        return tuple(values)
    return tuple(_value(f"{where}[{i}].{name}", value, spec) for i, value in enumerate(values))


def _all_finite(values: list[Any]) -> bool:
    """Whether numbers that may be None are all finite, and none is beyond what a float holds."""
    try:
        numbers = np.array(values, np.float64)
    except OverflowError:
        return False
    return int(np.isfinite(numbers).sum()) == len(values) - values.count(None)


def _columns(section: str, raw: dict[str, Any], declared: Any) -> dict[str, Any]:
    given = {} if raw.get(section) is None else raw[section]
    if not isinstance(given, dict):
        raise ConfigError(f"{section}: expected an object of column names and values, got {given!r}.")
    _known_keys(section, given, list(declared))
    return {name: _value(f"{section}.{name}", value, declared[name]) for name, value in given.items()}


def _value(where: str, value: Any, spec: ColumnSpec) -> Any:
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


def _scalar(where: str, value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if value is None or isinstance(value, str | int):
        return value
    raise ConfigError(f"{where}: expected text or a whole number, got {value!r}.")


def _id(where: str, value: Any) -> Any:
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63):
        return value
    raise ConfigError(
        f"{where}: {value!r} cannot be an id: ids are text or whole numbers from 0 on. Send them as the log has them."
    )


def _list(raw: dict[str, Any], name: str) -> list[Any]:
    value = raw.get(name)
    if value is None:
        return []
    if not isinstance(value, list):
        raise ConfigError(f"{name}: expected a list, got {value!r}; {EXAMPLE}.")
    return value


def _at_most(name: str, values: list[Any], limit: int) -> None:
    if len(values) > limit:
        raise ConfigError(f"{name}: {len(values)} entries, at most {limit} are allowed. Send fewer or raise the limit.")


def _known_keys(where: str, given: dict[str, Any], valid: Any) -> None:
    for key in given:
        if key not in valid:
            hint = unknown_key(key, list(valid)) if valid else "None are declared."
            raise ConfigError(f"{where}: unknown key {key!r}. {hint}")
