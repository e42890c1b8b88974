"""Who serves now: `CURRENT` of the workspace, the line of its history, and MLflow's alias `champion`, in this order.

A process that is killed on the way leaves a whole state: `CURRENT` names the old bundle or the new one. What had not
followed yet, the history or the alias, is mended by the next `run`, `promote` or `rollback`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ctr.reporting.mlflow_registry import Registry
from ctr.reporting.mlflow_runs import Tracker
from ctr.serving.bundle import Bundle, BundleManifest, exported_as, open_bundle
from features.errors import ChampionMovedError, DataError
from features.store.pointer import CURRENT, named_by, point_at
from pipelines.gate.history import FOUND_WHY, Action, Move, add_move, move_to, read_moves
from pipelines.workspace import Workspace

ALIAS = "champion"
WAIT = 30.0  # seconds for another process that moves the pointers of the same name


def registered_name(name: str) -> str:
    """The name of a contract's models in the registry."""
    return f"quadrank-{name}"


def current_name(bundles: Path) -> str | None:
    """The folder that `CURRENT` names; None without the pointer, where it cannot be read, or the folder is gone."""
    try:
        name = named_by(bundles / CURRENT)
    except DataError:
        return None
    return name if name and Path(name).name == name and (bundles / name).is_dir() else None


@contextmanager
def champion_folder(name: str, workspace: Workspace) -> Iterator[Path | None]:
    """The folder of the bundle that serves now; None where none does.

    It is what `CURRENT` names. A workspace without one, as on a fresh machine, asks the registry: the bundle of the
    alias is in the workspace under its model version, or is downloaded for the time of the block.
    """
    bundles = workspace.bundles(name)
    current = current_name(bundles)
    if current is not None:
        yield bundles / current
        return
    registry = Registry(workspace.root)
    version = registry.version_tags(registered_name(name), ALIAS).get("model_version")
    if version is None:
        yield None
    elif (bundles / version).is_dir():
        yield bundles / version
    else:
        with tempfile.TemporaryDirectory(prefix="quadrank-champion-") as scratch:
            yield registry.download_bundle(f"models:/{registered_name(name)}@{ALIAS}", Path(scratch))


def register(bundle: Bundle, workspace: Workspace) -> str:
    """The version of the bundle in the registry, which is made in a run of its own where no run registered it."""
    registry, tracker = Registry(workspace.root), Tracker(workspace.root)
    name = registered_name(bundle.manifest.name)
    version = registry.find_version(name, bundle.manifest.model_version)
    if version is None:
        title = f"promote {bundle.manifest.model_version}"
        with tracker.run(experiment=name, run_name=title, tags={"stage": "promote"}, params={}):
            version = registry.register(bundle.path, name, tracker.run_id)
    return version


def move_current(
    bundle: Bundle,
    workspace: Workspace,
    action: Action,
    why: str,
    metrics: Mapping[str, float] | None = None,
    unless: Callable[[], str | None] = lambda: None,
) -> str:
    """Let `CURRENT` name a bundle, and write the move down; returns what was done, in one sentence.

    Where both are so already, nothing is done.

    Args:
        bundle: one that passed the gate, or that one goes back to.
        workspace: its `bundles/<name>/CURRENT` moves if the bundle is in that folder.
        action, why, metrics: as of `Move`.
        unless: a reason why it must not move, asked for while nobody else can move it; None where it may.

    Raises:
        LockError: another process moves the pointer of this name, still after 30 s.
        DataError: the bundle was removed meanwhile.
        ChampionMovedError: `unless` has a reason.
    """
    name = bundle.manifest.name
    bundles = workspace.bundles(name)
    if bundle.path.parent != bundles.resolve():
        return f"{bundles / CURRENT} does not change: the bundle is in another folder"
    with workspace.lock(f"{name}.pointers", WAIT):
        before, moves = current_name(bundles), read_moves(bundles)
        if before == bundle.path.name and moves and moves[-1].after == before:
            return f"{bundles / CURRENT} names {before} already"
        if not bundle.path.is_dir():
            raise DataError(f"{bundle.path}: was removed meanwhile. {bundles / CURRENT} names {before} still.")
        if (reason := unless()) is not None:
            raise ChampionMovedError(
                f"{bundle.path}: {reason}. {bundles / CURRENT} names {before} still. Start the same command again: the "
                "bundle is then judged against what serves now."
            )
        pointer = point_at(bundles, bundle.path.name)
        add_move(bundles, move_to(bundle.manifest, action, before, bundle.path.name, why, metrics))
    return f"{pointer} is now {bundle.path.name}"


def champion_changed(champion: str | None, bundle: Path) -> str | None:
    """Why a verdict on a bundle does not count any more: what serves is not what it was judged against. Else None.

    A bundle that has served keeps its verdict, so that what was rolled back is not promoted again. Upserts of items
    change no model.

    Args:
        champion: that it was judged against, by its model version or its folder; None where none served.
        bundle: its folder, beside `CURRENT`.
    """
    bundles = bundle.parent
    current = current_name(bundles)
    if current is None or exported_as(current) in (exported_as(champion or ""), bundle.name):
        return None
    if bundle.name in [exported_as(move.after) for move in read_moves(bundles)]:
        return None
    manifest = _current_manifest(bundles)
    if manifest is not None and exported_as(manifest.model_version) == exported_as(champion or ""):
        return None
    return f"it was judged against {champion or 'no champion'}, and {current} serves now"


def move_alias(bundle: Bundle, version: str, registry: Registry) -> str:
    """Let the alias `champion` name the version of a bundle; returns what was done, in one sentence."""
    name = registered_name(bundle.manifest.name)
    if registry.set_alias(name, ALIAS, version):
        return f"models:/{name}@{ALIAS} is now version {version} ({bundle.manifest.model_version})"
    return f"models:/{name}@{ALIAS} becomes {bundle.manifest.model_version} when MLflow answers again"


def mend(name: str, workspace: Workspace) -> list[str]:
    """Finish what a killed process had begun: the line of a move, and the alias that had not followed.

    The alias is moved only from the bundle before the last move: one that names another bundle was set on purpose.

    Returns:
        One sentence for each thing that was mended.

    Raises:
        LockError: another process moves the pointer of this name, still after 30 s.
    """
    done = mend_history(name, workspace)
    bundles = workspace.bundles(name)
    moves, manifest = read_moves(bundles), _current_manifest(bundles)
    return done + (_mend_alias(manifest, moves[-1], bundles, workspace) if moves and manifest else [])


def mend_history(name: str, workspace: Workspace) -> list[str]:
    """Add the line of a move of `CURRENT` that has none; the registry is not asked. Arguments and errors as `mend`."""
    bundles = workspace.bundles(name)
    if current_name(bundles) is None:
        return []
    with workspace.lock(f"{name}.pointers", WAIT):
        manifest, moves, current = _current_manifest(bundles), read_moves(bundles), current_name(bundles)
        if manifest is None or current is None or not moves or moves[-1].after == current:
            return []
        add_move(bundles, move_to(manifest, "found", moves[-1].after, current, FOUND_WHY))
    return [f"{bundles / CURRENT} names {current}, which had no line in the history: added"]


def _current_manifest(bundles: Path) -> BundleManifest | None:
    """The manifest of the bundle that serves; None without one. A damaged one is for the gate to report."""
    current = current_name(bundles)
    try:
        return None if current is None else open_bundle(bundles / current).manifest
    except DataError:
        return None


def _mend_alias(manifest: BundleManifest, last: Move, bundles: Path, workspace: Workspace) -> list[str]:
    registry, name = Registry(workspace.root), registered_name(manifest.name)
    alias = registry.version_tags(name, ALIAS).get("model_version")
    if alias == manifest.model_version:
        return []
    before = _model_version(bundles, last.before)
    if alias is not None and alias != before:
        return []
    version = registry.find_version(name, manifest.model_version)
    if version is None:
        return []
    registry.set_alias(name, ALIAS, version)
    return [
        f"models:/{name}@{ALIAS} had not followed {CURRENT}: it is now version {version} ({manifest.model_version})"
    ]


def _model_version(bundles: Path, folder: str | None) -> str | None:
    """The model version of a bundle beside; where it is gone or damaged its folder's name, the same at its export."""
    if folder is None or not (bundles / folder).is_dir():
        return folder
    try:
        return open_bundle(bundles / folder).manifest.model_version
    except DataError:
        return folder
