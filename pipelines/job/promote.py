"""Stage 6: the gate between a new bundle and what servers follow: the `champion` alias and `CURRENT`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from ctr.reporting.mlflow_registry import Registry
from ctr.reporting.mlflow_runs import Tracker
from ctr.serving.bundle import Bundle, BundleManifest, open_bundle
from ctr.serving.ranker import Ranker
from features.errors import GateError
from features.store.pointer import point_at
from pipelines.workspace import Workspace

ALIAS = "champion"
CALIBRATION_RANGE = (0.8, 1.25)


def gate(path: Path, registry: Registry) -> Bundle:
    """Decide whether a bundle may serve; returns it verified.

    It must load, replay its golden requests, and give no reason against it (`reasons_against`).

    Raises:
        GateError: every reason at once, with the numbers.
    """
    bundle = open_bundle(path)
    Ranker.load(bundle.path)
    manifest = bundle.manifest
    champion = registry.version_tags(f"quadrank-{manifest.name}", ALIAS)
    if reasons := reasons_against(manifest, champion):
        raise GateError("; ".join(reasons))
    return bundle


def reasons_against(manifest: BundleManifest, champion: Mapping[str, str]) -> list[str]:
    """Why a bundle must not serve; empty where it may.

    Its calibration ratio on the test window must lie within `CALIBRATION_RANGE` (both ends allowed); its AUC be above
    the popularity control's; and the upper end of its AUC's 95 % interval not below the champion's AUC, where the
    champion was measured on the same feature set. A number that is NaN, or was not measured, does not pass.

    Args:
        manifest: of the bundle.
        champion: tags of the champion's version; empty where there is none.
    """
    split, metrics = next(iter(manifest.metrics.items()))
    ratio, auc, auc_high = (metrics.get(name, math.nan) for name in ("calibration_ratio", "auc", "auc_high"))
    popularity = manifest.controls["popularity"].get("auc", math.nan)
    reasons = []
    low, high = CALIBRATION_RANGE
    if not low <= ratio <= high:
        reasons.append(f"calibration ratio {ratio:.3f} is outside {low} to {high}")
    if not auc > popularity:
        reasons.append(f"{split} AUC {auc:.4f} is not above popularity's {popularity:.4f}")
    if champion.get("feature_set") == manifest.feature_set:
        best = float(champion.get(f"{split}_auc", math.nan))
        if not auc_high >= best:
            reasons.append(f"{split} AUC {auc:.4f} (at most {auc_high:.4f}) is below the champion's {best:.4f}")
    return reasons


def make_champion(bundle: Bundle, version: str, registry: Registry, workspace: Workspace) -> list[str]:
    """Let `models:/quadrank-<name>@champion` name this version, then the workspace's `CURRENT` the bundle.

    Args:
        bundle: one that passed the gate.
        version: of the registered model.
        registry: where the alias moves.
        workspace: whose `bundles/<name>/CURRENT` is flipped, where the bundle lies there.

    Returns:
        What was done, a sentence each.
    """
    name = f"quadrank-{bundle.manifest.name}"
    registry.set_alias(name, ALIAS, version)
    done = [f"models:/{name}@{ALIAS} is now version {version} ({bundle.manifest.model_version})"]
    bundles = workspace.bundles(bundle.manifest.name)
    if bundle.path.parent == bundles.resolve():
        done.append(f"{point_at(bundles, bundle.path.name)} is now {bundle.path.name}")
    else:
        done.append(f"{bundles / 'CURRENT'} stays as it is: the bundle lies elsewhere")
    return done


def promote_bundle(path: Path, workspace: Workspace, console: Console) -> dict[str, Any]:
    """Gate a bundle by hand, registering it first where no run has. Raises GateError (exit 6)."""
    registry, tracker = Registry(workspace.root), Tracker(workspace.root)
    bundle = gate(path, registry)
    name = f"quadrank-{bundle.manifest.name}"
    version = registry.find_version(name, bundle.manifest.model_version)
    if version is None:
        with tracker.run(
            experiment=name,
            run_name=f"promote {bundle.manifest.model_version}",
            tags={"stage": "promote"},
            params={},
        ):
            version = registry.register(bundle.path, name, tracker.run_id)
    for done in make_champion(bundle, version, registry, workspace):
        console.print(done)
    return {
        "status": "done",
        "exit_code": 0,
        "name": name,
        "version": version,
        "alias": ALIAS,
        "bundle": str(bundle.path),
    }
