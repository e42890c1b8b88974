"""The gate as the job sees it: one verdict on a bundle, and what a passed bundle gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from ctr.reporting.mlflow_registry import Registry
from ctr.serving.bundle import open_bundle
from features.errors import GateError, StoreAwayError
from pipelines.gate.judge import judge as judge_bundle
from pipelines.gate.pointers import mend
from pipelines.gate.promote import DRIFT, let_serve, why_promoted
from pipelines.gate.settings import GateRules, load_gate
from pipelines.shipped import default_settings
from pipelines.stages.basis import flat
from pipelines.workspace import Workspace


@dataclass(frozen=True)
class Verdict:
    """What the gate says of a bundle.

    Args:
        passed: whether it may serve.
        status: of the job.
        exit_code: of the job.
        reasons: for people: what was refused, or is to be looked at.
        found: all that was found, as docs/gate.md has it.
        tags: of the run in MLflow.
    """

    passed: bool
    status: str
    exit_code: int
    reasons: tuple[str, ...] = ()
    found: dict[str, Any] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


def rules() -> dict[str, Any]:
    """The settings that a verdict depends on, as JSON."""
    return flat(_rules().model_dump(mode="json"), "gate")


def judge(bundle: Path, workspace: Workspace, console: Console) -> Verdict:
    """Judge a bundle beside the champion; print what was found, and why it is refused.

    What a killed process left undone of an earlier promotion is mended first, as far as MLflow answers.
    """
    name = open_bundle(bundle).manifest.name
    try:
        for done in mend(name, workspace):
            console.print(done)
    except StoreAwayError as error:
        console.print(f"whether the alias names what serves is looked at later: {error}", style="yellow", markup=False)
    found = judge_bundle(bundle, workspace, _rules(), console)
    reasons = tuple(f"{one.rule}: {one.reason}" for one in found.findings if not one.passed)
    if not found.passed:
        console.print(f"gate refused, champion kept: {found.reason}", style="yellow", markup=False)
        return Verdict(False, "gate refused", GateError.exit_code, reasons, found.as_json(), found.tags())
    console.print("gate passed")
    status, code = ("drift", DRIFT) if found.drifted else ("done", 0)
    return Verdict(True, status, code, reasons, found.as_json(), found.tags())


def promote(
    bundle: Path, version: str, registry: Registry, workspace: Workspace, found: Mapping[str, Any]
) -> list[str]:
    """Let a bundle that passed serve: `CURRENT`, its history, the alias; one sentence for each step.

    Args:
        bundle: its folder.
        version: of the registered model.
        registry: where the alias moves.
        workspace: whose pointer moves.
        found: of its verdict.
    """
    why, metrics = why_promoted(found.get("champion")), found.get("metrics", {})
    return let_serve(open_bundle(bundle), version, registry, workspace, why, metrics)


def _rules() -> GateRules:
    return load_gate(default_settings("gate.yaml"))
