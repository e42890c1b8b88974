"""The best trial of a sweep: its settings as a preset file, its score in MLflow, the JSON summary."""

from __future__ import annotations

from typing import Any

import optuna
import yaml

from ctr.reporting.mlflow_runs import Tracker
from features.errors import ConfigError
from features.store.atomic import write_text
from pipelines.job_settings import JobSettings
from pipelines.tune.space import SearchSpace, by_section
from pipelines.workspace import TUNE


def record_best(study: optuna.Study, search: SearchSpace, settings: JobSettings, run_id: str) -> dict[str, Any]:
    """Write `runs/tune/<study>.best.yaml`, log it to the study's MLflow run and return the JSON summary.

    Args:
        study: with the trials of all workers so far.
        search: the search space.
        settings: those that all trials share.
        run_id: of the study's MLflow run.

    Raises:
        ConfigError: no trial finished.
    """
    states = [trial.state.name.lower() for trial in study.trials]
    counts = {state: states.count(state) for state in sorted(set(states))}
    if "complete" not in counts:
        raise ConfigError(
            f"study {study.study_name!r}: no trial finished ({counts}). Correct the errors above, and "
            "start the command again."
        )
    best = study.best_trial
    preset = settings.changed(by_section(best.params)).preset()
    out = settings.workspace.runs / TUNE / f"{study.study_name}.best.yaml"
    head = (
        f"# Best trial ({best.number}) of sweep {study.study_name!r}: validation {search.metric} {best.value:.5f}.\n"
        f"# Train it: quadrank train --data … --model {out}\n"
    )
    write_text(out, head + yaml.safe_dump(preset.model_dump(mode="json"), sort_keys=False))
    tracker = Tracker(settings.workspace.root)
    with tracker.resume(run_id):
        tracker.log_metrics({f"best.{search.metric}": float(best.value or 0.0), "trials": float(len(states))})
        tracker.log_file(out, "best")
    settings.console.print(f"best of {counts}: trial {best.number}, {search.metric} {best.value:.4f}")
    settings.console.print(f"  {best.params}")
    settings.console.print(f"  its settings: {out}")
    return {
        "status": "done",
        "exit_code": 0,
        "study": study.study_name,
        "trials": counts,
        "best": {"trial": best.number, search.metric: best.value, "params": best.params},
        "config": str(out),
        "run_id": run_id,
    }
