"""The whole scheduled job behind `make train`: its stages in order, under one lock, each from where it stands."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ctr.reporting.mlflow_store import MlflowStore
from features.errors import QuadRankError, StoreAwayError
from pipelines.gate.pointers import mend
from pipelines.gate.settings import GateRules
from pipelines.job.export import check_pasts
from pipelines.job.summary import Summary
from pipelines.job_settings import JobSettings
from pipelines.operate.clock import StageClock
from pipelines.operate.left_open import end_left_open
from pipelines.operate.waiting import require_answer, say_sent, send_waiting
from pipelines.stages.hand import InHand, bundle_of, summary_of
from pipelines.stages.plan import Decision, decide, plan, plan_table
from pipelines.stages.record import JobRecord
from pipelines.stages.steps import Features, Stage, Train, stages_of

NOTHING_NEW = "nothing new"
TRACKING_URI = "MLFLOW_TRACKING_URI"  # environment variable: another MLflow than the workspace's own


def run_job(settings: JobSettings, rules: GateRules, clock: StageClock) -> Summary:
    """Run every stage that is not done for what is there now, under one lock and one MLflow run.

    A stage that an earlier process left unfinished goes on where it stood. Where no stage after `features` has anything
    to do, the status is `nothing new`. A refused gate keeps the champion and `CURRENT`, and gives exit code 6, also
    when the same job runs again; the bundle stays for inspection, and `NEWEST` names it.

    Args:
        settings: of the job.
        rules: bounds of the gate.
        clock: measures its stages, which MLflow is told of.

    Raises:
        ConfigError: pasts of a log without events in time; nothing was built then.
        StoreAwayError: MLflow does not answer, and `train.tracking` is `now`; nothing was begun then.
        LockError: another job on this contract runs in the workspace.
        QuadRankError: whatever a stage refuses; the MLflow run is then marked FAILED.
    """
    preset, contract, workspace = settings.preset(), settings.source.contract, settings.workspace
    if settings.pasts:
        check_pasts(contract)
    require_answer(workspace, preset.train.tracking)
    with workspace.lock(contract.name):
        _catch_up(settings)
        record, done = _record(settings), {}
        # A process that was killed after its last stage has told nobody how it ended.
        worked = not record.closed
        with InHand(settings, preset) as hand:
            for stage in stages_of(settings, rules):
                decision, seconds = _step(stage, hand, record, clock)
                done[stage.name] = {"does": decision.does, "reason": decision.reason, "seconds": seconds}
            if not record.closed:
                # Which is ended with this block, also where a killed process had done the last stage.
                hand.tracker().log_metrics(clock.metrics())
            summary = summary_of(hand)
        record.close()
    summary.stages = done
    gate = hand.results["gate"]
    worked |= any(found["does"] == "run" for name, found in done.items() if name != Features.name)
    summary.status, summary.exit_code = gate["status"], gate["exit_code"]
    summary.gate, summary.error = gate["verdict"], None if gate["verdict"]["passed"] else gate["reason"]
    if gate["verdict"]["passed"] and not worked:
        summary.status, summary.exit_code = NOTHING_NEW, 0
    if worked:
        bundle = bundle_of(workspace.root, hand.results)
        settings.console.print(f"\nbundle  {bundle}\nrun     {hand.run_dir()}\n\nnext:")
        for line in next_steps(settings.contract_file, workspace.root, bundle):
            settings.console.print(f"  {line}")
    else:
        settings.console.print(f"nothing new: {hand.run_dir().name} is of this data, these settings and this code")
    return summary


def _catch_up(settings: JobSettings) -> None:
    """Send what waits for MLflow, and mend what killed processes left of runs and promotions, whatever comes next."""
    say_sent(send_waiting(settings.workspace), settings.console)
    end_left_open(settings.workspace)
    with suppress(StoreAwayError):  # the alias follows at the next contact
        for done in mend(settings.source.contract.name, settings.workspace):
            settings.console.print(done)


def plan_job(settings: JobSettings, rules: GateRules) -> dict[str, Any]:
    """What `run_job` would do now, as a table and as the JSON summary. Nothing is written."""
    settings.preset()
    decisions = plan(stages_of(settings, rules), _record(settings).stages)
    name = settings.source.contract.name
    settings.console.print(plan_table(f"plan of the job on {name} with {settings.model}", decisions))
    return {"status": "plan", "exit_code": 0, "stages": _as_json(decisions)}


def _as_json(decisions: Sequence[Decision]) -> dict[str, dict[str, Any]]:
    content = (asdict(decision) for decision in decisions)
    return {found["stage"]: {"does": found["does"], "reason": found["reason"]} for found in content}


def _record(settings: JobSettings) -> JobRecord:
    record = JobRecord(settings.workspace.job(settings.source.contract.name, settings.model.stem))
    if record.unreadable:
        settings.console.print(f"{record.path}: cannot be read: every stage runs as if it never had", style="yellow")
    return record


def _step(stage: Stage, hand: InHand, record: JobRecord, clock: StageClock) -> tuple[Decision, float]:
    """One stage: decide, do it where it is due, and keep its result; seconds that it took."""
    before = record.stages.get(stage.name)
    decision = decide(stage, before, hand.results)
    hand.console.print(f"{stage.name}: {decision.does}, {decision.reason}")
    if decision.does == "skip":
        hand.results[stage.name] = decision.begun
    if decision.does != "run":
        return decision, 0.0
    started = time.monotonic()
    if stage.name == Train.name and before is not None and not decision.begun:
        hand.leave(before)
    if stage.name != Features.name:
        record.opened()
    record.begin(stage.name, stage.basis(hand.results), dict(decision.begun))
    try:
        with clock.stage(stage.name):
            result = stage.run(hand, decision.begun, lambda begun: record.note(stage.name, begun))
    except QuadRankError as error:
        record.fail(stage.name, str(error), started)
        raise
    record.end(stage.name, result, started)
    hand.results[stage.name] = result
    return decision, record.stages[stage.name].seconds


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


def next_steps(contract: Path, root: Path, bundle: Path) -> list[str]:
    """Commands that may come next, each as a shell takes it, with what it is for.

    Args:
        contract: its file.
        root: of the workspace.
        bundle: folder of the bundle that was made.
    """
    quadrank, here = command_here("quadrank"), root.resolve() == Path.cwd()
    work = "" if here else f" --work {shlex.quote(str(root))}"
    data = shlex.quote(str(contract))
    return [
        f"{quadrank} rank --bundle {shlex.quote(str(bundle))}   # score its request.json, from raw ids",
        f"{quadrank} tune --data {data} --study first --trials 10{work}   # search for better settings",
        f"{_tracked_at(root, here)}   # curves, plots and bundles of every run",
    ]


def _tracked_at(root: Path, here: bool) -> str:
    """Where runs are read: an address, or the command that opens the store."""
    store = MlflowStore(root)
    if store.uri.startswith(("http://", "https://")):
        return store.shown
    if os.environ.get(TRACKING_URI):
        uri = f'"${TRACKING_URI}"'
    else:
        uri = "sqlite:///mlflow.db" if here else shlex.quote(store.uri)
    return f"{command_here('mlflow')} ui --backend-store-uri {uri}"
