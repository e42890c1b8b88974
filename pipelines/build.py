"""Stage 1: raw tables -> feature set, or the one already built from the same input."""

from __future__ import annotations

from pathlib import Path

from features.build import BuildResult, build_feature_set
from features.contract import Contract
from pipelines.workspace import Workspace


def build(contract: Contract, workspace: Workspace, as_of: str | None = None) -> BuildResult:
    """Build (or reuse) the feature set of a contract below the workspace."""
    out = workspace.feature_sets
    out.mkdir(parents=True, exist_ok=True)
    return build_feature_set(contract, out, as_of=as_of)


def describe(result: BuildResult) -> str:
    """One line for people: reused or built, how large, where."""
    manifest = result.feature_set.manifest
    rows = {name: window.rows for name, window in manifest.windows.items()}
    counts = " / ".join(f"{rows[name]:,}" for name in ("train", "valid", "test"))
    how = "reused, input unchanged" if result.reused else f"built in {result.seconds:.1f} s"
    return (
        f"feature set {Path(result.feature_set.path)} ({how}): {counts} train/valid/test rows, "
        f"{manifest.schema_.items - 2:,} items, {manifest.schema_.users - 2:,} users"
    )
