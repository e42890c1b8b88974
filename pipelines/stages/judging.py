"""The gate as the job sees it: one verdict on a bundle, and what a passed bundle gets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from ctr.reporting.mlflow_registry import Registry
from ctr.serving.bundle import open_bundle
from features.errors import GateError
from pipelines.job.promote import CALIBRATION_RANGE, gate, make_champion
from pipelines.workspace import Workspace


@dataclass(frozen=True)
class Verdict:
    """What the gate says of a bundle.

    Args:
        passed: whether it may serve.
        status: of the job.
        exit_code: of the job.
        reasons: for people: what was refused, or is to be looked at.
    """

    passed: bool
    status: str
    exit_code: int
    reasons: tuple[str, ...] = ()


def rules() -> dict[str, Any]:
    """The settings that a verdict depends on, as JSON."""
    return {"gate.calibration_ratio": list(CALIBRATION_RANGE)}


def judge(bundle: Path, registry: Registry, console: Console) -> Verdict:
    """Judge a bundle, and print why it is refused."""
    try:
        gate(bundle, registry)
    except GateError as refused:
        console.print(f"gate refused, champion kept: {refused}", style="yellow")
        return Verdict(False, "gate refused", refused.exit_code, (str(refused),))
    console.print("gate passed")
    return Verdict(True, "done", 0)


def promote(bundle: Path, version: str, registry: Registry, workspace: Workspace) -> list[str]:
    """Let a bundle that passed serve: alias and `CURRENT`; one sentence for each step. Doing it twice changes nothing.

    Args:
        bundle: its folder.
        version: of the registered model.
        registry: where the alias moves.
        workspace: whose pointer moves.
    """
    return make_champion(open_bundle(bundle), version, registry, workspace)
