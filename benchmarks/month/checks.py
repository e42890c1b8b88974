"""What must hold after each night: the files that tell of it, whole pointers, and room on the disk."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ctr.serving.bundle import open_bundle
from features.errors import DataError
from features.store.feature_set import FeatureSet
from features.store.pointer import CURRENT, NEWEST
from pipelines.operate.codes import SUCCESSES
from pipelines.operate.outcome import LAST_SUCCESS, OUTCOME, TEXTFILE
from pipelines.workspace import Workspace


def success_of(workspace: Workspace, name: str) -> dict[str, Any]:
    """What LAST_SUCCESS holds; empty where no run has succeeded yet."""
    path = workspace.status(name) / LAST_SUCCESS
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def untold(workspace: Workspace, name: str, code: int, last_line: str, before: dict[str, Any]) -> list[str]:
    """Where a night's exit code is not told as it should be; empty if it is told everywhere.

    Args:
        workspace: after the night.
        name: of the data contract.
        code: that the last try ended with.
        last_line: of its stderr.
        before: what LAST_SUCCESS held before the night.
    """
    found = []
    outcome = json.loads((workspace.status(name) / OUTCOME).read_text(encoding="utf-8"))
    if outcome.get("exit_code") != code:
        found.append(f"{OUTCOME} says {outcome.get('exit_code')}")
    text = (workspace.status(name) / TEXTFILE).read_text(encoding="utf-8")
    told = re.findall(r"^quadrank_exit_code\{[^}]*\} (\S+)$", text, re.MULTILINE)
    if told != [str(float(code))]:
        found.append(f"{TEXTFILE} says {told}")
    if code and last_line != f"quadrank: exit {code}":
        found.append(f"stderr ends with {last_line!r}")
    success = success_of(workspace, name)
    if (success != before) != (code in SUCCESSES):
        found.append(f"{LAST_SUCCESS} is of {success.get('ended')}")
    return found


def broken(workspace: Workspace, name: str, champion: str | None) -> list[str]:
    """What is not whole of what the pointers name; empty if all is.

    Args:
        workspace: after the night.
        name: of the data contract.
        champion: the bundle that MLflow's alias names; None where MLflow is away.
    """
    found, current = [], None
    try:
        FeatureSet.open(workspace.feature_sets / name).verify()
        open_bundle(workspace.bundles(name) / NEWEST)
        current = open_bundle(workspace.bundles(name) / CURRENT).manifest.model_version
    except DataError as error:
        found.append(str(error))
    if champion is not None and champion != current:
        found.append(f"the alias names {champion}, {CURRENT} names {current}")
    return found


def mib_of(*folders: Path) -> float:
    """Disk that the files below some folders take, MiB; a file with two names counts once."""
    sizes = {}
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                status = path.stat()
                sizes[status.st_ino] = status.st_size
    return round(sum(sizes.values()) / 2**20, 1)
