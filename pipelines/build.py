"""Stage 1: raw tables -> feature set, or the one already built from the same input."""

from __future__ import annotations

from pathlib import Path

from features.build import BuildResult, build_feature_set
from features.contract import Contract
from features.errors import ConfigError
from pipelines.workspace import Workspace


def build(contract: Contract, workspace: Workspace, as_of: str | None = None, window: int | None = None) -> BuildResult:
    """Build (or reuse) the feature set of a contract below the workspace.

    Args:
        contract: what to read and how.
        workspace: where feature sets lie.
        as_of: last day that is read.
        window: days whose rows it holds; default all.
    """
    out = workspace.feature_sets
    out.mkdir(parents=True, exist_ok=True)
    return build_feature_set(contract, out, as_of=as_of, window=window)


def parse_window(text: str | None) -> int | None:
    """Days of `14d`. Raises ConfigError for anything else."""
    if text is None:
        return None
    days = text.removesuffix("d")
    if not text.endswith("d") or not days.isdecimal() or not int(days):
        raise ConfigError(f"--window {text}: not a number of days. Write it as 14d.")
    return int(days)


def describe(result: BuildResult) -> str:
    """For people: reused or built, how large, where; then what the checks found, a line each."""
    manifest = result.feature_set.manifest
    rows = {name: window.rows for name, window in manifest.windows.items()}
    counts = " / ".join(f"{rows[name]:,}" for name in ("train", "valid", "test"))
    how = "reused, input unchanged" if result.reused else f"built in {result.seconds:.1f} s"
    findings = "".join(f"\nwarning: {finding}" for finding in manifest.findings)
    return (
        f"feature set {Path(result.feature_set.path)} ({how}): {counts} train/valid/test rows, "
        f"{manifest.schema_.items - 2:,} items, {manifest.schema_.users - 2:,} users{findings}"
    )
