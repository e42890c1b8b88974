"""What the keys of counters are made of: columns of items, users and the request, and which of them may be one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from features.contract.columns import ColumnSpec, Numeric, Tags
from features.contract.log import Counter, Interactions

Side = Literal["item", "user", "context"]
SECTIONS: dict[Side, str] = {"item": "items.columns", "user": "users.columns", "context": "interactions.context"}


def by_half_life(counters: Any) -> Any:
    """Counters as a contract file has them, where one with a list of half-lives is one a half-life: `name_6h`."""
    if not isinstance(counters, dict):
        return counters
    found: dict[str, Any] = {}
    for name, one in counters.items():
        lives = one.get("half_life") if isinstance(one, dict) else None
        made = (
            {f"{name}_{life}": {**one, "half_life": life} for life in lives} if isinstance(lives, list) else {name: one}
        )
        if both := found.keys() & made.keys():
            raise ValueError(f"{min(both)!r} is declared twice; rename the counter, or change its half-lives")
        found |= made
    return found


def sides(
    counters: Mapping[str, Counter],
    log: Interactions,
    items: Mapping[str, ColumnSpec],
    users: Mapping[str, ColumnSpec],
    changing: Mapping[str, bool],
) -> dict[str, Side]:
    """The side of each name that a key has: `item`, `user` and the columns of the item table, user table and context.

    Args:
        counters: of the contract.
        log: with the context columns.
        items, users: columns of the tables.
        changing: by section, whether the columns of a table change with time.

    Raises:
        ValueError: a counter that names what is not there.
    """
    declared: dict[Side, Mapping[str, ColumnSpec]] = {"item": items, "user": users, "context": log.context}
    found: dict[str, Side] = {"item": "item", "user": "user"}
    for name, counter in counters.items():
        if counter.label is not None and counter.label not in log.labels:
            raise ValueError(
                f"counters.{name}.label: {counter.label!r} is none of `interactions.labels` ({_listed(log.labels)}). "
                "Declare it there, or leave `label` out for the label"
            )
        for key in counter.keys:
            if key not in ("item", "user"):
                found[key] = _side(f"counters.{name}.of", key, declared, changing)
    return found


def _side(
    where: str, key: str, declared: Mapping[Side, Mapping[str, ColumnSpec]], changing: Mapping[str, bool]
) -> Side:
    having = [side for side, columns in declared.items() if key in columns]
    if not having:
        known = {"item", "user"}.union(*declared.values())
        raise ValueError(
            f"{where}: no column {key!r}; a key is made of `item`, `user` and columns of items, users and context: "
            f"{_listed(known)}"
        )
    if len(having) > 1:
        both = " and ".join(SECTIONS[side] for side in having)
        raise ValueError(f"{where}: {key!r} is a column of {both}; rename one of them, with its `source`")
    (side,) = having
    spec = declared[side][key]
    if isinstance(spec, Tags):
        raise ValueError(
            f"{where}: {key!r} has several values a row (tags), and a row has one key. Declare a categorical column "
            "beside it, e.g. of the first tag"
        )
    if isinstance(spec, Numeric):
        raise ValueError(
            f"{where}: {key!r} is a number. Declare it as `buckets`, also a second time under another name"
        )
    if changing.get(SECTIONS[side]):
        raise ValueError(
            f"{where}: {key!r} changes with time (valid_from of its table), and a counter has one key for all time. "
            "Write it into the log, and declare it under interactions.context"
        )
    return side


def _listed(names: Any) -> str:
    return ", ".join(sorted(names)) or "none"
