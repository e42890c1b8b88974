"""The whole scheduled job behind `make train`: features, train, evaluate, export, register, gate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from features.contract import Contract
from features.errors import GateError
from pipelines.export import export_model
from pipelines.promote import gate, move_alias
from pipelines.summary import Summary
from pipelines.train import Job
from pipelines.workspace import Workspace, point_current_at


def run_job(
    contract: Contract,
    contract_path: Path,
    model: Path,
    train_defaults: Path,
    overrides: dict[str, Any],
    workspace: Workspace,
    console: Console,
) -> Summary:
    """Run every stage under one lock and one MLflow run.

    A refused gate keeps the champion and is told by the summary's exit code 6; the bundle stays for
    inspection.

    Raises:
        LockError: another job on this contract runs in the workspace.
        QuadRankError: whatever a stage refuses; the MLflow run is then marked FAILED.
    """
    with workspace.lock(contract.name):
        job = Job.open(contract, model, train_defaults, overrides, workspace, console)
        with job.tracked() as tracker:
            summary = job.train_and_evaluate()
            exported = export_model(
                job.model,
                job.feature_set,
                job.run_dir,
                workspace.bundles(contract.name) / job.run_dir.name,
                console,
            )
            bundle = exported.path
            point_current_at(bundle)
            summary.bundle = str(bundle)
            version = tracker.register(bundle, f"quadrank-{contract.name}")
            console.print(f"registered quadrank-{contract.name} version {version} in {tracker.uri}")
            try:
                gate(bundle, tracker)
            except GateError as refused:
                summary.status, summary.exit_code = "gate refused", refused.exit_code
                tracker.set_tag("gate", "refused")
                console.print(f"gate refused, champion kept: {refused}", style="yellow")
            else:
                move_alias(f"quadrank-{contract.name}", version, tracker)
                tracker.set_tag("gate", "passed")
                console.print(f"gate passed: models:/quadrank-{contract.name}@champion is version {version}")
        _next_steps(console, bundle, contract_path, workspace)
    return summary


def _next_steps(console: Console, bundle: Path, contract_path: Path, workspace: Workspace) -> None:
    request = bundle.parent / "request.json"
    console.print(f"\nbundle  {bundle}\nrun     {workspace.runs / bundle.name}\n\nnext:")
    console.print(f"  .venv/bin/quadrank rank --bundle {bundle} --request {request}   # score one request from raw ids")
    console.print(
        f"  .venv/bin/quadrank tune --data {contract_path} --study first --trials 10   # look for better settings"
    )
    console.print(
        "  .venv/bin/mlflow ui --backend-store-uri sqlite:///mlflow.db   # curves, plots and bundles of every run"
    )
