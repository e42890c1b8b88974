"""Stage 4: a hyperparameter sweep. Optuna chooses, every trial is a child run in MLflow.

runs/tune/<study>.journal      the study, which its workers share
runs/tune/<study>/<run id>/    a trial
runs/tune/<study>.best.yaml    the best trial's settings
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
import yaml
from pydantic import Field, PositiveInt, model_validator
from rich.console import Console

from ctr.config import load_preset
from ctr.reporting.mlflow_runs import Tracker
from ctr.training.loop import Evaluation, StopTraining
from features.contract.contract import Contract
from features.contract.settings import Settings, load_yaml, merge, validate
from features.errors import ConfigError, QuadRankError
from features.store.atomic import write_text
from pipelines.job.build import build, describe
from pipelines.job.train import Job
from pipelines.revision import git_revision
from pipelines.source import Source
from pipelines.workspace import TUNE, Workspace

LONGEST_WAIT = 3600.0  # seconds for another worker to build the feature set


class Range(Settings):
    """One searched setting: `choices`, or a range `low`..`high` (whole numbers stay whole)."""

    choices: list[Any] | None = None
    low: float | int | None = None
    high: float | int | None = None
    log: bool = False

    @model_validator(mode="after")
    def _one_form(self) -> Range:
        ranged = self.low is not None and self.high is not None
        if bool(self.choices) == ranged:
            raise ValueError("give either `choices`, or both `low` and `high`")
        if ranged and self.low >= self.high:  # type: ignore[operator]  # both are numbers when ranged
            raise ValueError(f"low must stay below high, got {self.low} and {self.high}")
        return self

    def suggest(self, trial: optuna.Trial, name: str) -> Any:
        """Draw a value for this trial."""
        if self.choices:
            return trial.suggest_categorical(name, self.choices)
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(name, self.low, self.high, log=self.log)
        return trial.suggest_float(name, float(self.low or 0), float(self.high or 0), log=self.log)


Direction = Literal["maximize", "minimize"]
DIRECTIONS: dict[str, Direction] = {"auc": "maximize", "gauc_by_samples": "maximize", "log_loss": "minimize"}


class SearchSpace(Settings):
    """`conf/tune.yaml`: what is searched, and by which metric. What is better follows from the metric."""

    metric: Literal["auc", "log_loss", "gauc_by_samples"] = "auc"
    direction: Direction | None = Field(None, description="may be stated, and must then be the metric's")
    seed: int = 1
    startup_trials: PositiveInt = 5
    space: dict[str, Range] = Field(min_length=1)

    @property
    def better(self) -> Direction:
        """Whether a higher or a lower value of the metric is better."""
        return DIRECTIONS[self.metric]

    def sampler(self, trial: int) -> optuna.samplers.TPESampler:
        """Of one trial, seeded by its number: workers of one study have trials of other numbers, so none repeats
        another's draws, and a sweep of one worker draws the same trials each time."""
        seed = int(np.random.SeedSequence([self.seed, trial]).generate_state(1)[0])
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=self.startup_trials)

    @model_validator(mode="after")
    def _direction_is_the_metrics(self) -> SearchSpace:
        if self.direction not in (None, self.better):
            raise ValueError(
                f"direction: {self.direction} would seek the worst model by {self.metric}. Leave the key out: it is "
                f"{self.better}"
            )
        return self

    @model_validator(mode="after")
    def _keys_are_settings(self) -> SearchSpace:
        for name in self.space:
            if name.split(".")[0] not in ("model", "train") or name.count(".") != 1:
                raise ValueError(f"space: {name!r} must be model.KEY or train.KEY")
        return self


def open_storage(storage: str | None, study: str, workspace: Workspace) -> Any:
    """A database URL as it is; otherwise a journal file, which several workers may share."""
    if storage and "://" in storage:
        return storage
    path = Path(storage) if storage else workspace.runs / TUNE / f"{study}.journal"
    path.parent.mkdir(parents=True, exist_ok=True)
    return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))


def run_study(
    source: Source,
    model: Path,
    train_defaults: Path,
    overrides: dict[str, Any],
    space_path: Path,
    study_name: str,
    storage: str | None,
    trials: int,
    workspace: Workspace,
    console: Console,
) -> dict[str, Any]:
    """Run `trials` trials of a study (new or joined); returns the JSON summary of the best.

    The feature set is built once, before the first trial; where another worker builds it, this one waits.

    Raises:
        ConfigError: the space names a setting that does not exist, or no trial of the study finished.
        LockError: another process still builds the feature set after `LONGEST_WAIT`.
    """
    search = validate(SearchSpace, load_yaml(space_path), str(space_path))
    # A wrong key must stop here, not in the middle of the night.
    probe = merge(overrides, _nested({name: _any_value(found) for name, found in search.space.items()}))
    load_preset(model, train_defaults, probe)
    result = build(source, workspace, wait=LONGEST_WAIT)
    console.print(describe(result))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    started = time.monotonic()
    # One worker at a time: each must find the study, and its MLflow run, that the first one makes.
    with workspace.lock(f"tune-{study_name}", wait=LONGEST_WAIT):
        study = optuna.create_study(
            study_name=study_name,
            storage=open_storage(storage, study_name, workspace),
            direction=search.better,
            pruner=optuna.pruners.MedianPruner(n_startup_trials=search.startup_trials, n_warmup_steps=1),
            load_if_exists=True,
        )
        if study.direction.name.lower() != search.better:
            raise ConfigError(
                f"study {study_name!r}: was begun to {study.direction.name.lower()}, and {search.metric} is to be "
                f"{search.better}d. Give the sweep another name with --study."
            )
        parent = _parent_run(study, source.contract, workspace, search, model)

    def objective(trial: optuna.Trial) -> float:
        study.sampler = search.sampler(trial.number)
        chosen = {name: found.suggest(trial, name) for name, found in search.space.items()}
        preset = load_preset(model, train_defaults, merge(overrides, _nested(chosen)))
        job = Job.start(preset, result.feature_set, workspace, console, study=study_name)
        trial.set_user_attr("run", job.run_dir.name)
        # The first look comes at another step for every batch size: prune by its place in the row of looks.
        looks = 0

        def report(evaluation: Evaluation) -> None:
            nonlocal looks
            trial.report(evaluation.metrics()[search.metric], looks)
            looks += 1
            if trial.should_prune():
                raise StopTraining(f"pruned: below the median of {study_name} at look {looks}")

        tags = {"study": study_name, "trial": str(trial.number)}
        with job.tracked(parent_run_id=parent, extra_tags=tags) as tracker:
            fitted = job.fit(on_evaluation=report)
            pruned = fitted.stopped_by_callback
            tracker.log_metrics({f"best.{key}": value for key, value in fitted.best.items()})
            tracker.set_tag("trial_state", "pruned" if pruned else "complete")
        console.print(f"trial {trial.number}: {search.metric} {fitted.best[search.metric]:.4f} {chosen}")
        if pruned:
            raise optuna.TrialPruned()
        return fitted.best[search.metric]

    study.optimize(objective, n_trials=trials, catch=(QuadRankError,))
    return _conclude(study, search, model, train_defaults, overrides, parent, workspace, console, started)


def _parent_run(study: optuna.Study, contract: Contract, workspace: Workspace, search: SearchSpace, model: Path) -> str:
    """The study's MLflow run, kept in the study itself so that every worker nests under the same one."""
    known = study.user_attrs.get("mlflow_run_id")
    if known:
        return str(known)
    tracker = Tracker(workspace.root)
    with tracker.run(
        experiment=f"quadrank-{contract.name}",
        run_name=f"sweep {study.study_name}",
        tags={"git_revision": git_revision(), "study": study.study_name},
        params={"model_file": str(model), "search": search.model_dump(mode="json")},
    ):
        run_id = tracker.run_id
    study.set_user_attr("mlflow_run_id", run_id)
    return run_id


def _conclude(
    study: optuna.Study,
    search: SearchSpace,
    model: Path,
    train_defaults: Path,
    overrides: dict[str, Any],
    parent: str,
    workspace: Workspace,
    console: Console,
    started: float,
) -> dict[str, Any]:
    states = [trial.state.name.lower() for trial in study.trials]
    counts = {state: states.count(state) for state in sorted(set(states))}
    if "complete" not in counts:
        raise ConfigError(f"study {study.study_name!r}: no trial finished ({counts}); see the errors above.")
    best = study.best_trial
    preset = load_preset(model, train_defaults, merge(overrides, _nested(best.params)))
    out = workspace.runs / TUNE / f"{study.study_name}.best.yaml"
    head = (
        f"# Best trial ({best.number}) of sweep {study.study_name!r}: validation {search.metric} {best.value:.5f}.\n"
        f"# Train it: quadrank train --data … --model {out}\n"
    )
    write_text(out, head + yaml.safe_dump(preset.model_dump(mode="json"), sort_keys=False))
    tracker = Tracker(workspace.root)
    with tracker.resume(parent):
        tracker.log_metrics({f"best.{search.metric}": float(best.value or 0.0), "trials": float(len(states))})
        tracker.log_file(out, "best")
    console.print(f"best of {counts}: trial {best.number}, {search.metric} {best.value:.4f}")
    console.print(f"  {best.params}")
    console.print(f"  its settings: {out}")
    return {
        "status": "done",
        "exit_code": 0,
        "study": study.study_name,
        "trials": counts,
        "best": {"trial": best.number, search.metric: best.value, "params": best.params},
        "config": str(out),
        "run_id": parent,
        "seconds": round(time.monotonic() - started, 2),
    }


def _nested(flat: dict[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        section, key = name.split(".")
        nested.setdefault(section, {})[key] = value
    return nested


def _any_value(found: Range) -> Any:
    return found.choices[0] if found.choices else found.low
