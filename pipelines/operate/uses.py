"""What of a workspace is in use: what pointers, aliases, locks, unfinished runs and waiting outboxes name."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from ctr.reporting.mlflow_registry import Registry, Version
from ctr.serving.bundle import run_of
from features.errors import DataError
from features.store.pointer import CURRENT, POINTERS, named_by
from pipelines.locks import SILENT_AFTER, Holder
from pipelines.operate.waiting import waiting_by_run
from pipelines.workspace import CONFIG, LOCK, METRICS, TUNE, Workspace, started_at

YOUNG = timedelta(days=7)  # an unfinished run may be gone on with, and a control stand beside others, as long as this
MANIFEST = "MANIFEST.json"  # in a bundle's folder
HISTORY = "HISTORY.jsonl"  # beside bundles: which were in use, for `rollback`


def is_held(path: Path) -> bool:
    """Whether a process holds the lock of a file or folder, on another machine too; False where there is none."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    holder = Holder.of(path)
    elsewhere = holder is not None and holder.host != socket.gethostname()
    return elsewhere and time.time() - path.stat().st_mtime < SILENT_AFTER


@dataclass(frozen=True)
class RunFolder:
    """A run or trial in the workspace.

    Args:
        path: its folder.
        name: of the data contract.
        finished: whether it was trained, calibrated and evaluated; trials never are.
        young: whether it began within the last seven days.
        feature_set: that it was trained on; None where it does not say.
        parent: run that it goes on from; None for a full training.
    """

    path: Path
    name: str
    finished: bool
    young: bool
    feature_set: Path | None
    parent: str | None

    @classmethod
    def read(cls, path: Path, workspace: Workspace, now: datetime) -> RunFolder:
        """What its name and its files say."""
        config = read_json(path / CONFIG)
        began, beginning = started_at(path.name), config.get("warm_start")
        feature_set = workspace.root / config["feature_set"] if _has_text(config, "feature_set") else None
        parent = beginning["run_id"] if isinstance(beginning, dict) and _has_text(beginning, "run_id") else None
        # TIME-NAME-TAIL, and a contract's name may have dashes.
        name = "-".join(path.name.split("-")[1:-1])
        return cls(path, name, (path / METRICS).is_file(), began is None or now - began < YOUNG, feature_set, parent)


@dataclass
class Uses:
    """What must stay, by full path, each with the reason; and what the registry has.

    Args:
        why: reasons by path of feature sets, runs and bundles.
        versions: of each registered model, the newest first.
        beginnings: runs of bundles that pointers and aliases name, and those that unfinished runs go on from: a
            training may begin with their weights and optimiser state.
    """

    why: dict[Path, str] = field(default_factory=dict)
    versions: dict[str, list[Version]] = field(default_factory=dict)
    beginnings: set[str] = field(default_factory=set)

    def add(self, path: Path, reason: str) -> None:
        """Keep a path for its first reason."""
        self.why.setdefault(path.resolve(), reason)

    def __contains__(self, path: Path) -> bool:
        return path.resolve() in self.why


def names_of(workspace: Workspace) -> list[str]:
    """Data contracts with anything in the workspace."""
    folders = [workspace.feature_sets, workspace.bundles("x").parent, workspace.apart.feature_sets]
    found = {path.name for folder in folders if folder.is_dir() for path in folder.iterdir() if path.is_dir()}
    return sorted(found | {run.name for run in runs_of(workspace, datetime.now(UTC)) if run.name})


def runs_of(workspace: Workspace, now: datetime) -> list[RunFolder]:
    """Runs, the newest first."""
    found = [path.parent for path in workspace.runs.glob(f"*/{CONFIG}")]
    return [RunFolder.read(path, workspace, now) for path in sorted(found, reverse=True)]


def trials_of(workspace: Workspace, now: datetime) -> list[RunFolder]:
    """Trials of all sweeps, the newest first."""
    found = [path.parent for path in (workspace.runs / TUNE).glob(f"*/*/{CONFIG}")]
    return [RunFolder.read(path, workspace, now) for path in sorted(found, key=lambda path: path.name, reverse=True)]


def uses(workspace: Workspace, registry: Registry, keep: int, now: datetime) -> Uses:
    """What must stay.

    Args:
        workspace: to be cleaned.
        registry: whose aliases keep versions and their runs.
        keep: how many of the newest feature sets, finished runs and bundles of each contract stay anyway.
        now: an aware datetime.

    Raises:
        StoreAwayError: what the aliases name cannot be known.
        DataError: nor what a pointer names that is no text, or what a run or bundle in use was made from, whose record
            is broken.
    """
    found = Uses()
    comparing = any(is_held(lock) for lock in workspace.comparisons.glob(f"*/{LOCK}"))
    waiting = {path.resolve() for path in waiting_by_run(workspace)}
    runs = runs_of(workspace, now)
    for name in names_of(workspace):
        found.versions[name] = registry.versions(f"quadrank-{name}")
        _of_bundles(found, workspace, name, keep)
        for bundle in versions_in(workspace.bundles(name)):
            if (workspace.runs / _run_of(bundle)).resolve() in waiting:
                found.add(bundle, "its run waits to register it in MLflow")
        for path in _newest(workspace.feature_sets / name, keep):
            found.add(path, f"among the {keep} newest")
        _of_pointers(found, workspace.feature_sets / name)
        for path in versions_in(workspace.feature_sets / name) if comparing else ():
            found.add(path, "a comparison runs, and may train on it")
        for run in [run for run in runs if run.name == name and run.finished][:keep]:
            found.add(run.path, f"among the {keep} newest")
    for run in [*runs, *trials_of(workspace, now)]:
        if is_held(run.path / ".lock"):
            found.add(run.path, "a process trains in it")
        elif run.path.resolve() in waiting:
            found.add(run.path, "what it logged waits for MLflow")
        elif run.young and not run.finished:
            found.add(run.path, "unfinished, and not a week old")
        elif run.young and (run.path / "target_only").is_dir():
            found.add(run.path, "its control stands beside runs of this week")
        if run.path in found and not run.finished and run.parent is not None:
            # A parent is older than its run, so that its own feature set is kept further down.
            found.beginnings.add(run.parent)
            found.add(workspace.runs / run.parent, f"run {run.path.name} goes on from it")
        if run.path in found:
            if run.feature_set is None:
                raise DataError(_unknown(_of_run(run)))
            found.add(run.feature_set, f"run {run.path.name} was trained on it")
    return found


def broken_records(workspace: Workspace) -> list[str]:
    """What each record of a run or bundle fails to say that `uses` asks it for, with its file."""
    now = datetime.now(UTC)
    runs = [_of_run(run) for run in [*runs_of(workspace, now), *trials_of(workspace, now)] if run.feature_set is None]
    bundles = [bundle for name in names_of(workspace) for bundle in sorted(versions_in(workspace.bundles(name)))]
    return runs + [_of_bundle(bundle) for bundle in bundles if _is_broken(bundle)]


def _of_run(run: RunFolder) -> str:
    return f"{run.path / CONFIG}: does not name the feature set of its run"


def _of_bundle(bundle: Path) -> str:
    return f"{bundle / MANIFEST}: does not name the run and the feature set of its bundle"


def _unknown(what: str) -> str:
    return (
        f"{what}, which is in use, so what may go is not known. Put the file back as it was, or take the folder away."
    )


def _is_broken(bundle: Path) -> bool:
    """Whether a bundle has a manifest that does not say what it was made from."""
    return (bundle / MANIFEST).is_file() and not _has_text(read_json(bundle / MANIFEST), "model_version", "feature_set")


def _has_text(record: Mapping[str, Any], *keys: str) -> bool:
    return all(isinstance(record.get(key), str) for key in keys)


def _of_bundles(found: Uses, workspace: Workspace, name: str, keep: int) -> None:
    """Bundles that are named, and the runs and feature sets that they were made from."""
    folder = workspace.bundles(name)
    _of_pointers(found, folder)
    for bundle in [path for path in versions_in(folder) if path in found]:
        found.beginnings.add(_run_of(bundle))
    for bundle in _newest(folder, keep):
        found.add(bundle, f"among the {keep} newest")
    for past in past_versions(folder)[:keep]:
        found.add(folder / past, f"one of the {keep} that were in use last")
    for version in found.versions[name]:
        if version.aliases:
            found.add(folder / version.model_version, f"the alias {version.aliases[0]}")
            found.add(workspace.runs / run_of(version.model_version), f"run of the alias {version.aliases[0]}")
            found.beginnings.add(run_of(version.model_version))
    for bundle in [path for path in versions_in(folder) if path in found]:
        if _is_broken(bundle):
            raise DataError(_unknown(_of_bundle(bundle)))
        manifest = read_json(bundle / MANIFEST)
        if manifest:
            found.add(workspace.runs / _run_of(bundle), f"run of the bundle {bundle.name}")
            found.add(workspace.feature_sets / name / manifest["feature_set"], f"of the bundle {bundle.name}")


def _run_of(bundle: Path) -> str:
    """The run that a bundle was exported from."""
    return run_of(str(read_json(bundle / MANIFEST).get("model_version")))


def _of_pointers(found: Uses, folder: Path) -> None:
    for pointer in POINTERS:
        name = named_by(folder / pointer)
        if name is not None:
            found.add(folder / name, pointer)


def past_versions(folder: Path) -> list[str]:
    """Bundles that were in use, by the history beside them, the last first, each once.

    Raises:
        DataError: a line that is no move; one that a killed process left half written is passed over.
    """
    file, moves = folder / HISTORY, []
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    for number, line in enumerate(lines, start=1):
        if not line.endswith("}"):
            continue
        try:
            moves.append(json.loads(line))
        except ValueError:
            raise DataError(
                f"{file}: line {number} is no move of {CURRENT}: {line[:80]!r}. Take the line out, or the file away."
            ) from None
    named = [str(move[key]) for move in reversed(moves) for key in ("to", "from") if move.get(key)]
    return list(dict.fromkeys(named))


def used_now(folder: Path) -> str | None:
    """What `CURRENT` names, whether or not it is there; None where it is none, or cannot be read."""
    try:
        return named_by(folder / CURRENT)
    except DataError:
        return None


def _newest(folder: Path, keep: int) -> list[Path]:
    """The newest versions, by when they were written."""
    return sorted(versions_in(folder), key=lambda path: path.stat().st_mtime, reverse=True)[:keep]


def versions_in(folder: Path) -> list[Path]:
    """Versions in a folder; hidden ones are being filled, or were set aside."""
    found = folder.glob("[!.]*") if folder.is_dir() else []
    return [path for path in found if path.is_dir() and path.name not in POINTERS]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where the file is missing or is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
