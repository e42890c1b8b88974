"""A bundle through the gate: what passes becomes what servers follow, the `champion` alias and `CURRENT`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from ctr.reporting.mlflow_registry import Registry
from ctr.serving.bundle import open_bundle
from features.errors import GateError
from pipelines.gate.judge import judge
from pipelines.gate.pointers import (
    ALIAS,
    champion_changed,
    mend,
    move_alias,
    move_current,
    register,
    registered_name,
)
from pipelines.gate.settings import GateRules
from pipelines.gate.verdict import Verdict
from pipelines.workspace import Workspace

DRIFT = 3  # exit code: done, and the data drifted


def promote(
    verdict: Verdict,
    bundle: Path,
    workspace: Workspace,
    rules: GateRules,
    console: Console,
    registry: Registry | None = None,
    version: str | None = None,
) -> str:
    """Make a bundle that passed the gate the champion, registered first if no run did; returns its version.

    Doing it twice changes nothing.

    Args:
        verdict: of this bundle.
        bundle: its folder, or a pointer to it.
        workspace: whose `CURRENT` moves if the bundle is in its folder of bundles.
        rules: that it was judged by.
        console: where messages are printed.
        registry: whose alias moves; default that of the workspace.
        version: of the bundle there, where a run registered it; one that was taken out since is registered anew.

    Raises:
        GateError: the gate refused it; the message has all reasons, with their figures. Nothing moves.
        LockError: another process moves the pointers of this name.
        ChampionMovedError: it was compared with a champion that serves no more; `CURRENT` stays.
    """
    if not verdict.passed:
        raise GateError(verdict.reason)
    opened = open_bundle(bundle)
    registry = registry or Registry(workspace.root)
    name = registered_name(opened.manifest.name)
    if version is None or not registry.holds(name, version):
        version = register(opened, workspace)
    registry.tag_version(name, version, verdict.tags())
    against = verdict.champion or "no champion"
    why = f"passed the gate against {against}"

    def changed() -> str | None:
        return champion_changed(verdict.champion, opened.path) if rules.compare else None

    console.print(move_current(opened, workspace, "promote", why, verdict.metrics, changed))
    console.print(move_alias(opened, version, registry))
    return version


def promote_bundle(path: Path, workspace: Workspace, rules: GateRules, console: Console) -> dict[str, Any]:
    """Judge a bundle and promote it if it passes: what `quadrank promote` does; returns the JSON summary.

    Its exit code is 6 where the gate refuses, and 3 where it is promoted and the data drifted.

    Raises:
        DataError: not a bundle, or a raw log that cannot be read.
        ConfigError: its feature set is not in the workspace.
        LockError: another process moves the pointers of this name.
        ChampionMovedError: another bundle began to serve while this one was judged.
    """
    bundle = open_bundle(path)
    name = bundle.manifest.name
    for done in mend(name, workspace):
        console.print(done)
    verdict = judge(bundle.path, workspace, rules, console)
    summary = {"name": registered_name(name), "alias": ALIAS, "bundle": str(bundle.path), "gate": verdict.as_json()}
    if not verdict.passed:
        tag_refused(verdict, name, workspace)
        console.print(f"gate refused, champion kept: {verdict.reason}", style="yellow", markup=False)
        code = GateError.exit_code
        return {"status": "gate refused", "exit_code": code, "error": verdict.reason, "version": None, **summary}
    version = promote(verdict, bundle.path, workspace, rules, console)
    code = DRIFT if verdict.drifted else 0
    return {"status": "drift" if code else "done", "exit_code": code, "version": version, **summary}


def tag_refused(verdict: Verdict, name: str, workspace: Workspace) -> None:
    """Tag the version of a refused bundle with the reasons, where a run registered it."""
    registry = Registry(workspace.root)
    version = registry.find_version(registered_name(name), verdict.model_version)
    if version is not None:
        registry.tag_version(registered_name(name), version, verdict.tags())
