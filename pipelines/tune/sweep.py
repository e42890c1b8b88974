"""Stage 4: a hyperparameter sweep. Optuna chooses the settings of each trial, which is a child run in MLflow.

runs/tune/<study>.journal      the study, which its workers share
runs/tune/<study>/<run id>/    a trial
runs/tune/<study>.best.yaml    the best trial's settings
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna

from ctr.reporting.mlflow_runs import Tracker
from ctr.training.loop import Evaluation, StopTraining
from features.errors import ConfigError, QuadRankError
from features.store.feature_set import FeatureSet
from pipelines.job.build import build, describe
from pipelines.job.train import Job
from pipelines.job_settings import JobSettings
from pipelines.revision import git_revision
from pipelines.tune.best import record_best
from pipelines.tune.space import SearchSpace, by_section
from pipelines.workspace import TUNE, Workspace

LONGEST_WAIT = 3600.0  # seconds for another worker to build the feature set


@dataclass(frozen=True)
class Sweep:
    """One worker's part of a study.

    Args:
        study: name; workers of one name share the study.
        space: the search space.
        storage: database URL or journal file of the study; default `runs/tune/<study>.journal`.
        trials: number that this worker runs.
    """

    study: str
    space: SearchSpace
    storage: str | None
    trials: int


def open_storage(storage: str | None, study: str, workspace: Workspace) -> Any:
    """The storage of a study: a database URL, or a journal file that several workers may share."""
    if storage and "://" in storage:
        return storage
    path = Path(storage) if storage else workspace.runs / TUNE / f"{study}.journal"
    path.parent.mkdir(parents=True, exist_ok=True)
    return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))


def run_sweep(settings: JobSettings, sweep: Sweep) -> dict[str, Any]:
    """Run one worker's trials of a new or existing study; returns the JSON summary of the best trial.

    The feature set is built once, before the first trial; if another worker builds it, this one waits.

    Raises:
        ConfigError: a setting cannot have a value of the space, or no trial of the study finished.
        LockError: another process still builds the feature set after `LONGEST_WAIT`.
    """
    _require_settings(settings, sweep.space)
    result = build(settings.source, settings.workspace, wait=LONGEST_WAIT)
    settings.console.print(describe(result))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    started = time.monotonic()
    # One worker at a time: the first one makes the study and its MLflow run, the others find them.
    with settings.workspace.lock(f"tune-{sweep.study}", wait=LONGEST_WAIT):
        study = _open_study(sweep, settings.workspace)
        parent = _parent_run(study, settings, sweep.space)

    def objective(trial: optuna.Trial) -> float:
        study.sampler = sweep.space.sampler(trial.number)
        return _run_trial(trial, settings, sweep, result.feature_set, parent)

    study.optimize(objective, n_trials=sweep.trials, catch=(QuadRankError,))
    payload = record_best(study, sweep.space, settings, parent)
    return payload | {"seconds": round(time.monotonic() - started, 2)}


def _require_settings(settings: JobSettings, space: SearchSpace) -> None:
    """Read the settings of a trial before the first one. Raises ConfigError for a value that a setting cannot have."""
    settings.preset()
    try:
        settings.changed(by_section(space.any_values())).preset()
    except ConfigError as error:
        raise ConfigError(f"a value of the search space cannot be used: {error}") from None


def _open_study(sweep: Sweep, workspace: Workspace) -> optuna.Study:
    space = sweep.space
    study = optuna.create_study(
        study_name=sweep.study,
        storage=open_storage(sweep.storage, sweep.study, workspace),
        direction=space.better,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=space.startup_trials, n_warmup_steps=1),
        load_if_exists=True,
    )
    if study.direction.name.lower() != space.better:
        raise ConfigError(
            f"study {sweep.study!r}: its direction is {study.direction.name.lower()}, and that of {space.metric} is "
            f"{space.better}. Give the sweep another name with --study."
        )
    return study


def _parent_run(study: optuna.Study, settings: JobSettings, space: SearchSpace) -> str:
    """The study's MLflow run; its id is kept in the study, so that the trials of all workers are its children."""
    known = study.user_attrs.get("mlflow_run_id")
    if known:
        return str(known)
    tracker = Tracker(settings.workspace.root)
    with tracker.run(
        experiment=f"quadrank-{settings.source.contract.name}",
        run_name=f"sweep {study.study_name}",
        tags={"git_revision": git_revision(), "study": study.study_name},
        params={"model_file": str(settings.model), "search": space.model_dump(mode="json")},
    ):
        run_id = tracker.run_id
    study.set_user_attr("mlflow_run_id", run_id)
    return run_id


def _run_trial(trial: optuna.Trial, settings: JobSettings, sweep: Sweep, feature_set: FeatureSet, parent: str) -> float:
    """Train with the settings of one trial; returns its best validation score. Raises TrialPruned."""
    metric = sweep.space.metric
    chosen = sweep.space.suggest(trial)
    preset = settings.changed(by_section(chosen)).preset()
    job = Job.start(preset, feature_set, settings.workspace, settings.console, study=sweep.study)
    trial.set_user_attr("run", job.run_dir.name)
    # The step of an evaluation depends on the batch size, so the pruner compares trials by the evaluation's number.
    evaluations = 0

    def report(evaluation: Evaluation) -> None:
        nonlocal evaluations
        trial.report(evaluation.metrics()[metric], evaluations)
        evaluations += 1
        if trial.should_prune():
            raise StopTraining(f"pruned: below the median of {sweep.study} at evaluation {evaluations}")

    tags = {"study": sweep.study, "trial": str(trial.number)}
    with job.tracked(parent_run_id=parent, extra_tags=tags) as tracker:
        fitted = job.fit(tracker, on_evaluation=report).result
        pruned = fitted.stopped_by_callback
        tracker.log_metrics({f"best.{key}": value for key, value in fitted.best.items()})
        tracker.set_tag("trial_state", "pruned" if pruned else "complete")
    settings.console.print(f"trial {trial.number}: {metric} {fitted.best[metric]:.4f} {chosen}")
    if pruned:
        raise optuna.TrialPruned()
    return fitted.best[metric]
