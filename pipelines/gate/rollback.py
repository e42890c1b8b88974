"""`quadrank rollback`: let `CURRENT` name an earlier bundle again, and write down who did it and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ctr.reporting.mlflow_registry import Registry
from ctr.serving.bundle import MANIFEST, open_bundle
from ctr.serving.ranker import Ranker
from features.errors import ConfigError, StoreAwayError
from pipelines.gate.history import Move, as_json, before_current, read_moves
from pipelines.gate.pointers import (
    ALIAS,
    current_name,
    mend_history,
    move_alias,
    move_current,
    register,
    registered_name,
)
from pipelines.workspace import Workspace


def rollback(name: str, to: str | None, why: str, workspace: Workspace, console: Console) -> dict[str, Any]:
    """Go back to an earlier bundle, which is loaded and replays its golden requests first; returns the JSON summary.

    `CURRENT` moves also where MLflow is away; `version` of the summary is None then.

    Args:
        name: of the contract.
        to: folder of the bundle beside `CURRENT`, or its path; default the one that served before the present one was
            promoted.
        why: in words, for the history.
        workspace: with the bundles.
        console: where messages are printed.

    Raises:
        ConfigError: no reason, or one that is no text, no such bundle, none before, or the one that serves already.
        DataError: the bundle is damaged.
        NumericalError: its golden requests score otherwise here.
        LockError: another process moves the pointers of this name.
    """
    if not why.strip():
        raise ConfigError("--why: is empty. Say in a few words why, for the history that others read.")
    try:
        why.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"--why: is no text in UTF-8, at character {error.start + 1}. Write it anew.") from None
    bundles = workspace.bundles(name)
    for done in mend_history(name, workspace):
        console.print(done)
    current = current_name(bundles)
    target = _target(bundles, current, to)
    bundle = open_bundle(bundles / target)
    Ranker.of(bundle)
    console.print(move_current(bundle, workspace, "rollback", why.strip()))
    version = None
    try:
        version = register(bundle, workspace)
        console.print(move_alias(bundle, version, Registry(workspace.root)))
    except (ConfigError, StoreAwayError) as error:
        # Servers that follow CURRENT are back already: they must not wait for MLflow.
        console.print(f"the alias {ALIAS} did not follow, the next job moves it: {error}", style="yellow", markup=False)
    return {
        "status": "done",
        "exit_code": 0,
        "name": registered_name(name),
        "alias": ALIAS,
        "version": version,
        "from": current,
        "to": target,
        "bundle": str(bundle.path),
    }


def list_moves(name: str, workspace: Workspace, console: Console) -> dict[str, Any]:
    """Print the moves of `CURRENT` and the bundles that one can go back to; returns the same for JSON.

    Raises:
        ConfigError: the workspace has no bundles of this name.
        DataError: a line of the history that is none.
    """
    bundles = workspace.bundles(name)
    there = _bundles(bundles)
    moves, current = read_moves(bundles), current_name(bundles)
    console.print(_table(moves, name))
    console.print(f"serves now: {current or 'none'}; here: {', '.join(there)}")
    return {"status": "done", "exit_code": 0, "current": current, "bundles": there, "history": as_json(moves)}


def _target(bundles: Path, current: str | None, to: str | None) -> str:
    there = _bundles(bundles)
    named = _name_in(bundles, to) if to else (before_current(read_moves(bundles), current) if current else None)
    if named is None:
        raise ConfigError(
            f"{bundles}: the history tells of no bundle before {current or 'this'}. Name one with --to: "
            f"{', '.join(there)}."
        )
    if named not in there:
        raise ConfigError(f"{bundles / named}: no bundle. Name one that is here with --to: {', '.join(there)}.")
    if named == current:
        raise ConfigError(f"{bundles / named}: serves already. Name another one with --to: {', '.join(there)}.")
    return named


def _name_in(bundles: Path, to: str) -> str:
    """The folder's name of a bundle that is named by it or by its path."""
    path = Path(to)
    return path.name if path.resolve().parent == bundles.resolve() else str(path)


def _bundles(bundles: Path) -> list[str]:
    there = sorted(path.parent.name for path in bundles.glob(f"*/{MANIFEST}") if not path.parent.name.startswith("."))
    if not there:
        raise ConfigError(
            f"{bundles}: holds no bundle. Name the contract with --name or --data, and the workspace with --work."
        )
    return there


def _table(moves: list[Move], name: str) -> Table:
    table = Table(title=f"moves of CURRENT: {name}", title_justify="left", title_style="bold")
    for column in ("when", "what", "from", "to", "who", "why"):
        table.add_column(column, overflow="fold")
    for one in moves:
        table.add_row(*map(Text, (one.when, one.action, one.before or "", one.after, one.who, one.why)))
    return table
