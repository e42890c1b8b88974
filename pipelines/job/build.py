"""Stage 1: from raw tables to a feature set, or the one already built from the same input."""

from __future__ import annotations

from pathlib import Path

from features.build.build import BuildResult, build_feature_set
from features.contract.contract import Contract
from pipelines.source import Source
from pipelines.workspace import Workspace


def build(source: Source | Contract, workspace: Workspace, wait: float = 0.0) -> BuildResult:
    """Build (or reuse) a feature set below the workspace.

    Args:
        source: contract and days; a contract alone means its whole log.
        workspace: where feature sets are.
        wait: seconds to wait for another process that builds a feature set of this contract.

    Raises:
        LockError: another process still builds, after `wait`.
        QuadRankError: as `build_feature_set`.
    """
    if isinstance(source, Contract):
        source = Source(source)
    out = workspace.feature_sets
    out.mkdir(parents=True, exist_ok=True)
    return build_feature_set(source.contract, out, as_of=source.as_of, window=source.window, wait=wait)


def describe(result: BuildResult) -> str:
    """Text for people: reused or built, sizes, folder; then one line for each finding of the checks."""
    manifest = result.feature_set.manifest
    rows = {name: window.rows for name, window in manifest.windows.items()}
    counts = " / ".join(f"{rows[name]:,}" for name in ("train", "valid", "test"))
    how = "reused, input unchanged" if result.reused else f"built in {result.seconds:.1f} s"
    told = [*manifest.findings, *([result.stale] if result.stale and result.stale not in manifest.findings else [])]
    findings = "".join(f"\nwarning: {finding}" for finding in told)
    return (
        f"feature set {Path(result.feature_set.path)} ({how}): {counts} train/valid/test rows, "
        f"{manifest.schema_.items - 2:,} items, {manifest.schema_.users - 2:,} users{findings}"
    )
