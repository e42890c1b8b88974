"""`HISTORY.jsonl` beside the bundles of a name: who moved `CURRENT`, when, from where to where, and why."""

from __future__ import annotations

import getpass
import json
import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from ctr.serving.bundle import BundleManifest, exported_as
from features.errors import DataError
from features.store.atomic import write_text
from features.store.pointer import CURRENT

HISTORY = "HISTORY.jsonl"
_FIELDS = {"from": "before", "to": "after"}  # by their names in a line, of which Python reserves the first
Action = Literal["promote", "rollback", "found"]
FOUND_WHY = "CURRENT had moved without a line here: the process that moved it ended, or it was moved by hand"


@dataclass(frozen=True)
class Move:
    """One move of `CURRENT`.

    Args:
        when: UTC, ISO 8601.
        who: user and host.
        action: `promote` after a passed gate, `rollback`, or `found` for one that was noticed later.
        before: folder that it named; None for the first bundle, or what is gone.
        after: folder that it names since.
        why: in words.
        metrics: of the bundle on the fresh rows of its gate.
        data: first and last instant of the bundle's rows by split, UTC.
        git_revision: of the code that trained the bundle.
    """

    when: str
    who: str
    action: Action
    before: str | None
    after: str
    why: str
    metrics: dict[str, float] = field(default_factory=dict)
    data: dict[str, list[str]] = field(default_factory=dict)
    git_revision: str = ""


def move_to(
    manifest: BundleManifest,
    action: Action,
    before: str | None,
    after: str,
    why: str,
    metrics: Mapping[str, float] | None = None,
) -> Move:
    """A move as of now, of the bundle with this manifest."""
    return Move(
        when=datetime.now(UTC).isoformat(timespec="seconds"),
        who=who(),
        action=action,
        before=before,
        after=after,
        why=why,
        metrics=dict(metrics or {}),
        data={name: [_instant(of.first_time), _instant(of.last_time)] for name, of in manifest.windows.items()},
        git_revision=manifest.git_revision,
    )


def read_moves(bundles: Path) -> list[Move]:
    """All moves, oldest first; none where nothing was moved yet.

    Raises:
        DataError: a line that is no move.
    """
    path = bundles / HISTORY
    try:
        # Not by lines of text: a reason may hold a line separator of Unicode, which JSON leaves as it is.
        lines = path.read_bytes().removesuffix(b"\n").split(b"\n")
    except FileNotFoundError:
        return []
    moves = []
    for number, line in enumerate(lines, start=1):
        try:
            content = json.loads(line)
            moves.append(Move(**{_FIELDS.get(name, name): value for name, value in content.items()}))
        except (ValueError, TypeError, AttributeError):
            raise DataError(
                f"{path}: line {number} is no move of {CURRENT}: {line.decode(errors='replace')[:80]!r}. Take the line "
                "out, or the file away."
            ) from None
    return moves


def add_move(bundles: Path, move: Move) -> None:
    """Write one more line. The file is replaced whole, so that a reader finds all lines or all but the last."""
    lines = [json.dumps(one, ensure_ascii=False) for one in as_json([*read_moves(bundles), move])]
    write_text(bundles / HISTORY, "\n".join(lines) + "\n")


def before_current(moves: list[Move], current: str) -> str | None:
    """The bundle that served before `current` came; None where that is not known.

    Going back twice goes back two promotions, since a rollback is none, and neither is an upsert of items.
    """
    run = exported_as(current)
    came = [
        one
        for one in moves
        if one.action != "rollback" and exported_as(one.after) == run and exported_as(one.before or "") != run
    ]
    return came[-1].before if came else None


def as_json(moves: list[Move]) -> list[dict[str, Any]]:
    """The moves as JSON has them, where `before` and `after` are `from` and `to`."""
    names = {field: name for name, field in _FIELDS.items()}
    return [{names.get(field, field): value for field, value in asdict(one).items()} for one in moves]


def who() -> str:
    """User and host of this process."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())  # a container may run under a user id that has no name
    return f"{user}@{socket.gethostname()}"


def _instant(microseconds: int) -> str:
    return datetime.fromtimestamp(microseconds / 1e6, UTC).isoformat(timespec="seconds")
