"""What a stage depends on: its key, and what differs from the last time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

MOST_NAMED = 3  # of what differs, in one reason


@dataclass(frozen=True)
class Basis:
    """All that decides what a stage makes.

    Args:
        inputs: a hash of each by its name: files of the log, or results of the stages before.
        settings: JSON values by dotted name, e.g. `train.epochs`.
        code: hash of the sources that do the work.
    """

    inputs: Mapping[str, str]
    settings: Mapping[str, Any]
    code: str

    @property
    def key(self) -> str:
        """sha256, 64 hex digits."""
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def changes(self, before: Basis) -> str:
        """What is another than before, for people: `inputs changed: log.parquet; code changed`. Empty if nothing is."""
        found = {
            "inputs changed": _replaced(before.inputs, self.inputs) or differences(before.inputs, self.inputs),
            "settings changed": differences(before.settings, self.settings),
        }
        reasons = [f"{what}: {_listed(names)}" for what, names in found.items() if names]
        if self.code != before.code:
            reasons.append(f"code changed: {before.code} is now {self.code}")
        return "; ".join(reasons)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Names with another value, that are new, or that are gone."""
    found = []
    for name in sorted({*before, *now}):
        if name not in before:
            found.append(f"{name} (new)")
        elif name not in now:
            found.append(f"{name} (gone)")
        elif before[name] != now[name]:
            found.append(name)
    return found


def _replaced(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """One name in place of one other, e.g. the run of today in place of yesterday's, which is still there."""
    old, new = sorted({*before} - {*now}), sorted({*now} - {*before})
    rest = [name for name in differences(before, now) if name in before and name in now]
    return [f"{new[0]} in place of {old[0]}", *rest] if len(old) == len(new) == 1 else []


def flat(content: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Nested settings by dotted name: `{"train": {"epochs": 3}}` is `{"train.epochs": 3}`."""
    return dict(_flat(content, prefix))


def _flat(content: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        path = f"{prefix}.{name}" if prefix else name
        if isinstance(value, Mapping) and value:
            yield from _flat(value, path)
        else:
            yield path, value


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more
