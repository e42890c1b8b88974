"""Stage 6: the gate between a new bundle and the `champion` alias that servers follow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from ctr.bundle import Bundle, open_bundle
from ctr.ranker import Ranker
from ctr.tracking import Tracker
from features.errors import GateError
from pipelines.workspace import Workspace

ALIAS = "champion"
CALIBRATION_RANGE = (0.8, 1.25)


def gate(path: Path, tracker: Tracker) -> Bundle:
    """Decide whether a bundle may serve; returns it verified.

    It must load and replay its golden requests; have a calibration ratio on the test window within
    `CALIBRATION_RANGE`; beat the popularity control's AUC; and not be worse than the champion beyond
    its own 95 % interval, where the champion was measured on the same feature set.

    Raises:
        GateError: every reason at once, with the numbers.
    """
    Ranker.load(path)
    bundle = open_bundle(path)
    manifest = bundle.manifest
    (split, metrics), controls = next(iter(manifest.metrics.items())), manifest.controls
    reasons = []
    low, high = CALIBRATION_RANGE
    if not low <= metrics["calibration_ratio"] <= high:
        reasons.append(f"calibration ratio {metrics['calibration_ratio']:.3f} is outside {low} to {high}")
    if metrics["auc"] <= controls["popularity"]["auc"]:
        reasons.append(
            f"{split} AUC {metrics['auc']:.4f} is not above popularity's {controls['popularity']['auc']:.4f}"
        )
    champion = tracker.version_tags(f"quadrank-{manifest.name}", ALIAS)
    if champion.get("feature_set") == manifest.feature_set:
        best = float(champion[f"{split}_auc"])
        if metrics["auc_high"] < best:
            measured = f"{metrics['auc']:.4f} (at most {metrics['auc_high']:.4f})"
            reasons.append(f"{split} AUC {measured} is below the champion's {best:.4f}")
    if reasons:
        raise GateError("; ".join(reasons))
    return bundle


def move_alias(name: str, version: str, tracker: Tracker) -> None:
    """Let `models:/<name>@champion` name this version."""
    tracker.set_alias(name, ALIAS, version)


def promote_bundle(path: Path, workspace: Workspace, console: Console) -> dict[str, Any]:
    """Gate a bundle by hand, registering it first where no run has. Raises GateError (exit 6)."""
    tracker = Tracker(workspace.root)
    bundle = gate(path, tracker)
    name = f"quadrank-{bundle.manifest.name}"
    version = tracker.find_version(name, bundle.manifest.model_version)
    if version is None:
        with tracker.run(
            experiment=name,
            run_name=f"promote {bundle.manifest.model_version}",
            tags={"stage": "promote"},
            params={},
        ):
            version = tracker.register(bundle.path, name)
    move_alias(name, version, tracker)
    console.print(f"models:/{name}@{ALIAS} is now version {version} ({bundle.manifest.model_version})")
    return {"status": "done", "exit_code": 0, "name": name, "version": version, "alias": ALIAS}
