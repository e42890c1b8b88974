"""The whole scheduled job behind `make train`: features, train, evaluate, export, register, gate."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from rich.console import Console

from ctr.export.export_bundle import Extras
from ctr.reporting.mlflow_registry import Registry
from features.errors import GateError
from pipelines.job.build import build, describe
from pipelines.job.export import check_pasts, export_model
from pipelines.job.promote import gate, make_champion
from pipelines.job.summary import Summary
from pipelines.job.train import Job
from pipelines.job_settings import JobSettings
from pipelines.operate.clock import StageClock
from pipelines.operate.waiting import require_answer


def run_job(settings: JobSettings, clock: StageClock) -> Summary:
    """Run every stage under one lock and one MLflow run.

    A refused gate keeps the champion and `CURRENT`, and gives the summary exit code 6; the bundle stays for inspection,
    and `NEWEST` names it.

    Args:
        settings: of the job.
        clock: measures its stages, which MLflow is told of.

    Raises:
        ConfigError: pasts of a log without events in time; nothing was built then.
        LockError: another job on this contract runs in the workspace.
        QuadRankError: whatever a stage refuses; the MLflow run is then marked FAILED.
    """
    preset, contract = settings.preset(), settings.source.contract
    workspace, console = settings.workspace, settings.console
    if settings.pasts:
        check_pasts(contract)
    require_answer(workspace, preset.train.tracking)
    with workspace.lock(contract.name):
        with clock.stage("features"):
            result = build(settings.source, workspace)
        console.print(describe(result))
        job = Job.start(preset, result.feature_set, workspace, console)
        with job.tracked() as tracker:
            with clock.stage("train"):
                model, summary = job.train_and_evaluate(tracker)
            with clock.stage("export"):
                extras = Extras(pasts=settings.pasts)
                exported = export_model(model, job.feature_set, job.run_dir, None, workspace, console, extras)
            summary.bundle = str(exported.path)
            registry = Registry(delivery=tracker.delivery)
            with clock.stage("register"):
                version = registry.register(exported.path, f"quadrank-{contract.name}", tracker.run_id)
            console.print(f"registered quadrank-{contract.name} version {version} in {registry.store.uri}")
            try:
                with clock.stage("gate"):
                    bundle = gate(exported.path, registry)
            except GateError as refused:
                summary.status, summary.exit_code = "gate refused", refused.exit_code
                tracker.set_tag("gate", "refused")
                console.print(f"gate refused, champion kept: {refused}", style="yellow")
            else:
                tracker.set_tag("gate", "passed")
                console.print(f"gate passed: {'; '.join(make_champion(bundle, version, registry, workspace))}")
            tracker.log_metrics(clock.metrics())
        _next_steps(console, exported.path, settings.contract_file, job.run_dir)
    return summary


def command_here(name: str) -> str:
    """How the user's shell calls a command of this environment: by its name where the path finds it, else by its path.

    Args:
        name: of the command, e.g. `quadrank`.
    """
    installed = Path(sys.executable).parent / name
    found = shutil.which(name)
    if not installed.exists() or (found is not None and Path(found).resolve() == installed.resolve()):
        return name
    return str(installed.relative_to(Path.cwd()) if installed.is_relative_to(Path.cwd()) else installed)


def _next_steps(console: Console, bundle: Path, contract_path: Path, run_dir: Path) -> None:
    quadrank, mlflow = command_here("quadrank"), command_here("mlflow")
    console.print(f"\nbundle  {bundle}\nrun     {run_dir}\n\nnext:")
    console.print(f"  {quadrank} rank --bundle {bundle}   # score its request.json, from raw ids")
    console.print(f"  {quadrank} tune --data {contract_path} --study first --trials 10   # search for better settings")
    console.print(f"  {mlflow} ui --backend-store-uri sqlite:///mlflow.db   # curves, plots and bundles of every run")
