"""What a legal ranking request is. Ids stay raw here; the encoder turns them into rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from pydantic import PositiveInt

from features.contract.columns import ColumnSpec
from features.contract.contract import Contract
from features.contract.settings import Settings
from features.encoding.past import Past, has_times, instants, parse_past
from features.encoding.raw_values import column_of, id_of, ids_of, known_keys, plain_ids, value_of
from features.errors import ConfigError

KEYS = ("user", "user_columns", "time", "context", "history", "candidates")
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
        history: item ids, oldest first, where they come with ready columns.
        history_events: for each event column that is given, one value a history item (None where not given).
        past: events as the log has them, which take the place of `history`.
        time: of the request, µs since 1970; None for now.
        user: None for an anonymous one.
        user_columns: raw columns that replace what is known of the user.
        context: raw context columns.
        candidate_columns: for each counter of items that is given, one value a candidate (None where not given).
        absent: which of `user` and `history` it does not have as a key; null and [] are an answer.
    """

    candidates: tuple[Any, ...]
    history: tuple[Any, ...] = ()
    history_events: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    past: Past | None = None
    time: int | None = None
    user: Any = None
    user_columns: dict[str, Any] = field(default_factory=dict)
    context: dict[str, Any] = field(default_factory=dict)
    candidate_columns: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    absent: tuple[str, ...] = ()


def parse_request(raw: Any, contract: Contract, limits: Limits | None = None) -> Request:
    """Check a request as it came from JSON.

    Raises:
        ConfigError: an unknown key (nearest valid one named), an id that cannot be one (negative,
            fractional, boolean), no candidates, events of which some have times, or more than the limits allow.
    """
    limits = limits or Limits()
    if not isinstance(raw, dict):
        raise ConfigError(f"request: expected a JSON object, got {type(raw).__name__}; {EXAMPLE}.")
    known_keys("request", raw, KEYS)
    candidates = _list(raw, "candidates")
    if not candidates:
        raise ConfigError(f"request: `candidates` is empty or missing: there is nothing to rank; {EXAMPLE}.")
    _at_most("candidates", candidates, limits.max_candidates)
    history = _list(raw, "history")
    _at_most("history", history, limits.max_history)
    past = parse_past(history, contract) if has_times(history) else None
    items, events = _entries("history", [] if past else history, contract.history.columns)
    shown, counters = _entries("candidates", candidates, contract.candidate_columns)
    users = contract.users.columns if contract.users else {}
    return Request(
        candidates=shown,
        history=items,
        history_events=events,
        past=past,
        time=None if raw.get("time") is None else int(instants("time", [raw["time"]], contract)[0]),
        user=None if raw.get("user") is None else id_of("user", raw["user"]),
        user_columns=_columns("user_columns", raw, users),
        context=_columns("context", raw, contract.context_columns),
        candidate_columns=counters,
        absent=tuple(key for key in ("user", "history") if key not in raw),
    )


def _entries(
    where: str, entries: list[Any], declared: Mapping[str, ColumnSpec]
) -> tuple[tuple[Any, ...], dict[str, tuple[Any, ...]]]:
    """Items given as ids, or as objects of `item` and any of the declared columns: the ids, and a tuple a given column.

    Each column is checked at once, by the types it holds. Only where that fails are its values looked at one by one,
    to name the first that is wrong.
    """
    ids = plain_ids(entries)
    if ids is not None:
        return ids, {}
    if dict not in set(map(type, entries)):
        return ids_of(where, entries), {}
    given = [entry if isinstance(entry, dict) else {"item": entry} for entry in entries]
    keys = set(chain.from_iterable(given))
    if not keys <= {"item", *declared}:
        for i, entry in enumerate(given):
            known_keys(f"{where}[{i}]", entry, ["item", *declared])
    try:
        items = [entry["item"] for entry in given]
    except KeyError:
        i = next(i for i, entry in enumerate(given) if "item" not in entry)
        raise ConfigError(f"{where}[{i}]: needs `item`, e.g. {{'item': 3}}.") from None
    columns = {
        name: column_of(where, name, [entry.get(name) for entry in given], spec)
        for name, spec in declared.items()
        if name in keys
    }
    return ids_of(where, items, ".item"), columns


def _columns(section: str, raw: dict[str, Any], declared: Any) -> dict[str, Any]:
    given = {} if raw.get(section) is None else raw[section]
    if not isinstance(given, dict):
        raise ConfigError(f"{section}: expected an object of column names and values, got {given!r}.")
    known_keys(section, given, list(declared))
    return {name: value_of(f"{section}.{name}", value, declared[name]) for name, value in given.items()}


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
