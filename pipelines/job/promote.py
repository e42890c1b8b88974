"""Stage 6: the gate. A bundle that passes it gets what servers follow: the `champion` alias and `CURRENT`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from ctr.reporting.entries import version_tags
from ctr.reporting.mlflow_registry import Registry
from ctr.reporting.mlflow_runs import Tracker
from ctr.serving.bundle import Bundle, BundleManifest, open_bundle
from ctr.serving.ranker import Ranker
from features.errors import GateError, StoreAwayError
from features.store.pointer import follow, point_at
from pipelines.workspace import Workspace

ALIAS = "champion"
CALIBRATION_RANGE = (0.8, 1.25)


def gate(path: Path, registry: Registry) -> Bundle:
    """Check whether a bundle may serve, and return it.

    It must load, give the expected scores of its golden requests, and pass every rule of `reasons_against`.

    Raises:
        GateError: a rule is broken; the message has all reasons, with their numbers.
    """
    bundle = open_bundle(path)
    Ranker.load(bundle.path)
    manifest = bundle.manifest
    champion = _champion(bundle, registry)
    if reasons := reasons_against(manifest, champion):
        raise GateError("; ".join(reasons))
    return bundle


def _champion(bundle: Bundle, registry: Registry) -> Mapping[str, str]:
    """Tags of the champion; where the registry is away, of the bundle that `CURRENT` beside this one names."""
    try:
        return registry.version_tags(f"quadrank-{bundle.manifest.name}", ALIAS)
    except StoreAwayError:
        current = follow(bundle.path.parent)
        return version_tags(open_bundle(current).manifest) if current != bundle.path.parent else {}


def reasons_against(manifest: BundleManifest, champion: Mapping[str, str]) -> list[str]:
    """Why a bundle must not serve; empty if it may.

    On the test window its calibration ratio must be within `CALIBRATION_RANGE` (both ends included), and its AUC above
    the popularity control's. If the champion was measured on the same feature set, the upper end of the 95 % interval
    of its AUC must not be below the champion's AUC. A number that is NaN or was not measured does not pass.

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
    """Move `models:/quadrank-<name>@champion` to this version, then the workspace's `CURRENT` to the bundle.

    Args:
        bundle: one that passed the gate.
        version: of the registered model.
        registry: where the alias moves.
        workspace: its `bundles/<name>/CURRENT` moves if the bundle is in that folder.

    Returns:
        One sentence for each step that was done.
    """
    name = f"quadrank-{bundle.manifest.name}"
    registry.set_alias(name, ALIAS, version)
    done = [f"models:/{name}@{ALIAS} is now version {version} ({bundle.manifest.model_version})"]
    bundles = workspace.bundles(bundle.manifest.name)
    if bundle.path.parent == bundles.resolve():
        done.append(f"{point_at(bundles, bundle.path.name)} is now {bundle.path.name}")
    else:
        done.append(f"{bundles / 'CURRENT'} does not change: the bundle is in another folder")
    return done


def promote_bundle(path: Path, workspace: Workspace, console: Console) -> dict[str, Any]:
    """Promote a bundle if it passes the gate; register it first if no run did. Raises GateError (exit 6)."""
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
