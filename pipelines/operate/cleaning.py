"""What nothing uses any more: listed, and removed with a record of each thing and its bytes."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from ctr.reporting.mlflow_registry import Registry
from ctr.reporting.mlflow_runs import Tracker
from ctr.reporting.outbox import OUTBOX
from features.errors import LockError
from features.store.disk import folder_bytes
from features.store.pointer import CURRENT
from pipelines.operate.artifacts import remove_artifacts
from pipelines.operate.left_open import end_left_open, left_open
from pipelines.operate.uses import RunFolder, Uses, is_held, names_of, runs_of, trials_of, used_now, uses, versions_in
from pipelines.workspace import CONFIG, TRACKED, VERDICT, Workspace, started_at

REMOVED = "REMOVED.jsonl"  # in status/: one line a removal
STAGING = (".building-*", ".replaced-*", ".exporting-*", ".removed-*")
# Siblings that `replace_file` fills: `.NAME-` and eight hex digits.
HALF_WRITTEN = re.compile(r"\..+-[0-9a-f]{8}")
SECONDS_TO_WRITE = 86_400  # nobody writes one file for a day
OPTIMISER = ("checkpoint-*.safetensors", "best-*.safetensors")


@dataclass(frozen=True)
class Removal:
    """One thing that nothing uses.

    Args:
        kind: feature set, run, bundle, verdict, trial, optimiser state, staging, or registered version.
        name: of the data contract that it belongs to, whose lock is held while it goes; empty for none.
        what: path below the workspace, or the version.
        bytes: that it takes.
        remove: takes it away.
    """

    kind: str
    name: str
    what: str
    bytes: int
    remove: Callable[[], None]


def clean(workspace: Workspace, keep: int, yes: bool, console: Console) -> dict[str, Any]:
    """List what nothing uses, and with `yes` remove it; end the MLflow runs that killed processes left open.

    Args:
        workspace: to be cleaned.
        keep: how many of the newest feature sets, finished runs, bundles and registered versions of each contract stay
            although nothing names them.
        yes: whether to remove.
        console: where people read.

    Returns:
        A JSON-able summary.

    Raises:
        StoreAwayError: MLflow does not answer, and so what its aliases use is not known.
    """
    registry = Registry(workspace.root)
    found = uses(workspace, registry, keep, datetime.now(UTC))
    planned = list(removals(workspace, registry, found, keep))
    removed, skipped = [], []
    for name in sorted({one.name for one in planned}):
        these = [one for one in planned if one.name == name]
        if not yes:
            continue
        try:
            with workspace.lock(name or "gc"), workspace.lock(f"{name or 'gc'}.pointers"):
                # A job may have begun to use something since the list was made. Nor does `promote` or `rollback`, which
                # hold the pointers alone, let a pointer name what goes.
                still = uses(workspace, registry, keep, datetime.now(UTC))
                allowed = {one.what for one in removals(workspace, registry, still, keep)}
                removed += [_removed(one, workspace) for one in these if one.what in allowed]
        except LockError:
            skipped.append(name)
            console.print(f"{name}: a job runs, nothing of it is removed", style="yellow")
    left = end_left_open(workspace) if yes else left_open(workspace)
    for run in left:
        done = "is ended in MLflow" if yes else "looks alive in MLflow: --yes ends it there"
        console.print(f"run {run.name}, whose process was killed, {done}")
    _say(planned, yes, keep, console)
    return {
        "status": "done" if yes else "listed",
        "exit_code": 0,
        "keep": keep,
        "bytes": sum(one.bytes for one in planned),
        "unused": [{"kind": one.kind, "what": one.what, "bytes": one.bytes} for one in planned],
        "removed": [{"kind": one.kind, "what": one.what, "bytes": one.bytes} for one in removed],
        "skipped": skipped,
        "left_open": [run.name for run in left],
    }


def removals(workspace: Workspace, registry: Registry, found: Uses, keep: int) -> Iterator[Removal]:
    """What nothing uses, in the order in which it goes: what refers to something goes before it."""
    now, root = datetime.now(UTC), workspace.root

    def of_path(kind: str, name: str, path: Path) -> Removal:
        return Removal(kind, name, path.relative_to(root).as_posix(), bytes_of(path), lambda: _away(path))

    for name in names_of(workspace):
        # First, for a folder that goes is named as what a killed removal of it left.
        for path in leftovers(workspace, name):
            yield of_path("staging", name, path)
        yield from _versions(registry, name, found, keep)
        for kind, folder in (("bundle", workspace.bundles(name)), ("feature set", workspace.feature_sets / name)):
            for path in sorted(versions_in(folder)):
                if path not in found and (kind == "bundle" or _is_old(path)):
                    yield of_path(kind, name, path)
        for path in _unused_apart(workspace.apart.feature_sets / name, found):
            yield replace(of_path("feature set", name, path), remove=partial(_away_with_pointer, path))
        for path in sorted(workspace.bundles(name).glob(f"*{VERDICT}")):
            bundle = path.with_name(path.name.removesuffix(VERDICT))
            if not bundle.is_dir() or bundle not in found:
                yield of_path("verdict", name, path)
    for run in runs_of(workspace, now):
        if run.path not in found:
            yield replace(of_path("run", run.name, run.path), remove=partial(_away_with_tracking, run, workspace))
        elif run.finished and run.path.name not in found.beginnings:
            for path in _optimiser(run.path):
                yield of_path("optimiser state", run.name, path)
    for path in never_began(workspace.runs):
        yield of_path("staging", "", path)
    for trial in trials_of(workspace, now):
        if trial.path not in found:
            away = partial(_away_with_tracking, trial, workspace)
            yield replace(of_path("trial", trial.name, trial.path), remove=away)
    for path in half_written(workspace):
        yield of_path("staging", "", path)


def _versions(registry: Registry, name: str, found: Uses, keep: int) -> Iterator[Removal]:
    """Registered versions that no alias names; the files in MLflow go where no version that stays is of them."""
    versions = found.versions.get(name, [])
    stay = {one.version for one in versions[:keep]} | {one.version for one in versions if one.aliases}
    held = {one.run_id for one in versions if one.version in stay}
    model = f"quadrank-{name}"
    gone: set[str] = set()
    for one in versions:
        if one.version in stay:
            continue
        files = one.run_id not in held | gone
        gone.add(one.run_id)
        size = registry.artifact_bytes(one.run_id) if files else 0

        def remove(one: Any = one, files: bool = files) -> None:
            registry.remove_version(model, one, files)

        yield Removal("registered version", name, f"{model} version {one.version}", size, remove)


def _optimiser(run: Path) -> list[Path]:
    return sorted(path for pattern in OPTIMISER for path in run.rglob(pattern))


def _unused_apart(folder: Path, found: Uses) -> list[Path]:
    """Feature sets of trials that are gone; a trial tells of the one that it was built for a moment later."""
    return [path for path in sorted(versions_in(folder)) if path not in found and _is_old(path)]


def leftovers(workspace: Workspace, name: str) -> Iterator[Path]:
    """What killed processes left of the feature sets and bundles of a contract."""
    for folder in (workspace.bundles(name), workspace.feature_sets / name, workspace.apart.feature_sets / name):
        yield from _left_behind(folder)


def half_written(workspace: Workspace) -> list[Path]:
    """What killed processes left of the other files of a workspace, however deep."""
    places = (workspace.runs, *(workspace.root / name for name in ("jobs", "status")))
    found = [path for place in places for path in place.rglob(".*-*")]
    found += (workspace.root / ".cache").glob(".*-*")
    removed = [path for path in workspace.runs.rglob(".removed-*") if path.is_dir()]
    return sorted({*removed, *(path for path in found if _is_half(path))})


def _left_behind(folder: Path) -> Iterator[Path]:
    """What killed processes left in a folder; what is being filled is locked, or was just written."""
    for path in sorted(folder.glob(".*")):
        if path.is_dir() and any(path.match(pattern) for pattern in STAGING):
            if not is_held(path) and not is_held(folder / ".lock"):
                yield path
        elif _is_half(path):
            yield path


def _is_half(path: Path) -> bool:
    return path.is_file() and HALF_WRITTEN.fullmatch(path.name) is not None and _is_old(path)


def never_began(runs: Path) -> Iterator[Path]:
    """Folders of runs that were killed before they wrote what they are."""
    folders = sorted(path for path in runs.glob("*") if path.is_dir() and started_at(path.name) is not None)
    return (path for path in folders if not (path / CONFIG).is_file() and _is_old(path))


def _is_old(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > SECONDS_TO_WRITE
    except FileNotFoundError:
        return False  # a job has renamed it since it was listed


def bytes_of(path: Path) -> int:
    """Bytes that are free when a file or folder is gone."""
    return folder_bytes(path) if path.is_dir() else path.stat().st_size


def _away(path: Path) -> None:
    """Remove a file, a link, or a folder: out of sight in one step, so that nobody meets half of it."""
    if path.is_symlink() or not path.is_dir():
        path.unlink()
        return
    aside = path if path.name.startswith(".") else path.with_name(f".removed-{path.name}")
    if aside != path:
        path.rename(aside)
    shutil.rmtree(aside)


def _away_with_pointer(path: Path) -> None:
    """Remove a feature set, first a pointer that names it: the next build reads what it names."""
    if used_now(path.parent) == path.name:
        (path.parent / CURRENT).unlink()
    _away(path)


def _away_with_tracking(run: RunFolder, workspace: Workspace) -> None:
    """Remove the folder of a run with its files in MLflow. An unfinished one would look alive there for ever."""
    tracked = run.path / TRACKED
    if tracked.is_file():
        tracker, run_id = Tracker(workspace.root, run.path / OUTBOX), tracked.read_text(encoding="utf-8").strip()
        if not run.finished:
            tracker.end_if_running(run_id)
        remove_artifacts(tracker.store, tracker.delivery.known().run(run_id))
    _away(run.path)


def _removed(one: Removal, workspace: Workspace) -> Removal:
    one.remove()
    file = workspace.root / "status" / REMOVED
    file.parent.mkdir(exist_ok=True)
    record = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "kind": one.kind, "what": one.what}
    with file.open("a", encoding="utf-8") as log:
        log.write(json.dumps({**record, "bytes": one.bytes, "user": os.environ.get("USER", "")}) + "\n")
    return one


def _say(planned: list[Removal], yes: bool, keep: int, console: Console) -> None:
    for kind in dict.fromkeys(one.kind for one in planned):
        these = [one for one in planned if one.kind == kind]
        console.print(f"{kind}: {len(these):,}, {sum(one.bytes for one in these) / 2**20:,.1f} MiB")
        for one in these:
            console.print(f"  {one.what}  {one.bytes / 2**20:,.1f} MiB")
    total = sum(one.bytes for one in planned) / 2**20
    if not planned:
        console.print(f"nothing to remove: all is in use, or among the {keep} newest")
    elif yes:
        console.print(f"removed {total:,.1f} MiB; status/{REMOVED} says what")
    else:
        console.print(f"{total:,.1f} MiB can go: `quadrank gc --keep {keep} --yes` removes them")
