"""One trial: draw settings, train with them, say how good they are. Each is a child run in MLflow."""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from ctr.export.latency import rank_latency
from ctr.model.calibrator import Calibrator
from ctr.model.click_model import ClickModel
from ctr.reporting.entries import BeginRun, Tag
from ctr.reporting.mlflow_runs import Tracker
from ctr.reporting.mlflow_sweeps import STAGE, STATE, STUDY, TRIAL
from ctr.reporting.outbox import OUTBOX
from ctr.training.loop import Evaluation, StopTraining
from features.errors import NumericalError, QuadRankError
from features.store.feature_set import FeatureSet
from pipelines.job.evaluate import score_split
from pipelines.job.tracked import tracked_id
from pipelines.job.train import Job, Trained
from pipelines.job_settings import JobSettings
from pipelines.source import Source
from pipelines.tune.measure import ValidationRows, save_scores
from pipelines.tune.noise import SAME_AS, USERS
from pipelines.tune.parent import experiment_of, study_tracker
from pipelines.tune.search.resolve import with_values
from pipelines.tune.search.samplers import suggest
from pipelines.tune.search.space import SearchSpace
from pipelines.tune.share import TrainingShare
from pipelines.tune.workers.host import (
    explaining_memory,
    free_bytes,
    peak_since_start,
    require_memory,
    sharing_cores,
    start_peak,
)
from pipelines.tune.workers.leases import HOST, WORKER, Lease, Renewal, at_work
from pipelines.tune.workers.standing import ERROR, NO_FAULT_OF_IT, RETRIES, state_after

Stage = Literal["search", "final"]
# Attributes of a trial beside those of leases and of the queue.
RUN, ROWS, SECONDS, PEAK, THREADS, SEED, FIRST, LOW, HIGH = (
    "run", "rows", "seconds", "peak_mib", "threads", "seed", "first", "low", "high",
)  # fmt: skip
OF_A_RESULT = (RUN, LOW, HIGH)  # what a trial with the same settings takes over beside the value


@dataclass(frozen=True)
class Trials:
    """How the trials of one stage of a study are run by this worker.

    Args:
        study: of Optuna.
        name: of the sweep.
        stage: the search itself, or the finalists.
        search: the search space.
        settings: those that all trials share.
        current: settings by dotted name, for conditions.
        parent: MLflow run of the sweep, as of `parent_run`.
        worker: this worker's name.
        lease: how often it says that it is alive; None where the storage does.
        share: of the training users.
        feature_set: gives the feature set of a source.
    """

    study: optuna.Study
    name: str
    stage: Stage
    search: SearchSpace
    settings: JobSettings
    current: Mapping[str, Any]
    parent: str | BeginRun
    worker: str
    lease: Lease | None
    share: float
    feature_set: Callable[[Source], FeatureSet]

    def objective(self, trial: optuna.Trial, drawn: Callable[[], None]) -> float | tuple[float, float]:
        """Run one trial, or take the result of one with the same settings: training them again would only repeat it.

        Args:
            trial: of Optuna.
            drawn: called once its settings are drawn and signed, when other workers may draw theirs.

        Raises:
            TrialPruned: its schedule ended it.
            QuadRankError: these settings cannot be trained; the trial says so, and is not tried again.
        """
        chosen = suggest(self.search, trial, self.current)
        trial.set_user_attr(WORKER, self.worker)
        trial.set_user_attr(HOST, socket.gethostname())
        same = self._same(trial)
        if same is not None:
            return self._taken(trial, same)
        renewal = Renewal(self.study._storage, trial._trial_id, self.lease) if self.lease else None
        if renewal is not None:
            renewal.start()
        drawn()
        try:
            return self._trained(trial, chosen, renewal)
        except NO_FAULT_OF_IT:
            raise
        except QuadRankError as error:
            trial.set_user_attr(ERROR, str(error))
            self.settings.console.print(f"trial {trial.number} failed: {error}", markup=False)
            if RUN in trial.user_attrs:
                raise
            with self._refused(trial, chosen):
                raise
        finally:
            if renewal is not None:
                renewal.stop()

    def _same(self, trial: optuna.Trial) -> FrozenTrial | None:
        """The complete trial of the search that was trained with these settings; a finalist has other seeds."""
        if self.stage == "final":
            return None
        done = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return next((one for one in done if one.params == trial.params), None)

    def _taken(self, trial: optuna.Trial, same: FrozenTrial) -> float | tuple[float, float]:
        trial.set_user_attr(SAME_AS, same.number)
        for name in OF_A_RESULT:
            if name in same.user_attrs:
                trial.set_user_attr(name, same.user_attrs[name])
        self.settings.console.print(
            f"trial {trial.number}: has the settings of trial {same.number}, whose result it takes: nothing is trained",
            markup=False,
        )
        values = [float(value) for value in same.values]
        return values[0] if len(values) == 1 else (values[0], values[1])

    def _refused(self, trial: optuna.Trial, chosen: Mapping[str, Any]) -> AbstractContextManager[Tracker]:
        """The MLflow run of a trial that cannot even begin: around its error, which ends the run as failed."""
        return study_tracker(self.settings, self.name).run(
            experiment=experiment_of(self.settings),
            run_name=f"{self.name} {self.stage} {trial.number}",
            tags={**self._tags(trial), STATE: "failed"},
            params=chosen,
            parent_run=self.parent,
        )

    def _tags(self, trial: optuna.Trial) -> dict[str, str]:
        return {STUDY: self.name, TRIAL: str(trial.number), STAGE: self.stage, WORKER: self.worker}

    def _trained(
        self, trial: optuna.Trial, chosen: Mapping[str, Any], renewal: Renewal | None
    ) -> float | tuple[float, float]:
        started = time.monotonic()
        start_peak()
        found = with_values(self.settings, chosen)
        preset = found.preset
        if SEED in trial.user_attrs:
            preset = preset.model_copy(
                update={"train": preset.train.model_copy(update={"seed": trial.user_attrs[SEED]})}
            )
        feature_set = self.feature_set(found.source)
        if self.share < 1:
            feature_set = TrainingShare(feature_set, self.share)
        require_memory(preset, feature_set, free_bytes())
        job = Job.start(preset, feature_set, self.settings.workspace, self.settings.console, study=self.name)
        trial.set_user_attr(RUN, str(job.run_dir.resolve()))
        workers = at_work(self.study.get_trials(deepcopy=False), socket.gethostname())
        with (
            sharing_cores(workers) as threads,
            job.tracked(parent_run=self.parent, extra_tags=self._tags(trial)) as tracker,
        ):
            try:
                with explaining_memory():
                    fitted = job.fit(tracker, on_evaluation=self._reporting(trial, renewal))
                value = self._value(fitted)
                pruned = fitted.result.stopped_by_callback
                rows = fitted.result.epochs_run * feature_set.manifest.windows["train"].rows
                facts = {ROWS: round(rows), SECONDS: round(time.monotonic() - started, 2), PEAK: peak_since_start()}
                for name, fact in (facts | {THREADS: threads}).items():
                    trial.set_user_attr(name, fact)
                tracker.log_metrics({f"best.{key}": found for key, found in fitted.result.best.items()})
                tracker.log_metrics({f"trial.{name}": float(fact) for name, fact in facts.items()})
                if not pruned:
                    self._measure(trial, fitted, feature_set, job.run_dir)
                latency = self._latency(fitted, feature_set, job.run_dir, tracker)
                tracker.set_tag(STATE, "pruned" if pruned else "complete")
            except BaseException as error:
                tracker.set_tag(STATE, state_after(error, int(trial.user_attrs.get(RETRIES, 0))))
                raise
        self.settings.console.print(
            f"trial {trial.number}{' pruned' if pruned else ''}: {self.search.metric} {value:.4f} {dict(chosen)}",
            markup=False,
        )
        if pruned:
            raise optuna.TrialPruned()
        return value if latency is None else (value, latency)

    def _value(self, fitted: Trained) -> float:
        """What the trial is worth. Raises NumericalError where the validation rows have no such metric."""
        value = float(fitted.result.best[self.search.metric])
        if not math.isfinite(value):
            raise NumericalError(
                f"the {self.search.metric} of the validation rows is {value}. Choose another metric, or a validation "
                "window in which users have rows of both labels."
            )
        return value

    def _reporting(self, trial: optuna.Trial, renewal: Renewal | None) -> Callable[[Evaluation], None]:
        # The step of an evaluation depends on the batch size: schedules compare trials by the evaluation's number.
        evaluations = 0

        def report(evaluation: Evaluation) -> None:
            nonlocal evaluations
            evaluations += 1
            if renewal is not None and renewal.lost:
                raise StopTraining("another worker has this trial now")
            if self.search.against is not None:
                return  # Optuna has no schedule for two objectives
            trial.report(evaluation.metrics()[self.search.metric], evaluations)
            if trial.should_prune():
                raise StopTraining(f"pruned by the schedule at evaluation {evaluations}")

        return report

    def _measure(self, trial: optuna.Trial, fitted: Trained, feature_set: FeatureSet, run_dir: Path) -> None:
        """Keep scores and an interval of a trial that leads, and of two trials at least; others save the time."""
        done = self.study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
        scored = [one for one in done if LOW in one.user_attrs and one.values is not None]
        value = float(fitted.result.best[self.search.metric])
        sign = 1 if self.search.better == "maximize" else -1
        leads = all(sign * value > sign * float(one.values[0]) for one in done if one.values is not None)
        if not leads and len(scored) >= 2 and self.stage == "search":
            return
        save_scores(run_dir, uncalibrated_scores(fitted.model, feature_set))
        rows = ValidationRows(feature_set, self.search.metric)
        ours = rows.measured([run_dir])
        if ours is None:
            return
        interval = ours.interval()
        trial.set_user_attr(LOW, interval.low)
        trial.set_user_attr(HIGH, interval.high)
        if not scored or self.stage == "final":
            return
        rival = max(scored, key=lambda one: sign * float(one.values[0]))
        theirs = rows.measured([Path(rival.user_attrs[RUN])])
        if theirs is not None:
            gain = rows.gain(ours, theirs)
            trial.set_user_attr(USERS, (gain.high - gain.low) / 2)

    def _latency(self, fitted: Trained, feature_set: FeatureSet, run_dir: Path, tracker: Tracker) -> float | None:
        if self.search.against is None:
            return None
        found = rank_latency(fitted.model.config, run_dir, feature_set)
        tracker.log_metrics({"rank_latency_ms": found})
        return found


def uncalibrated_scores(model: ClickModel, feature_set: FeatureSet) -> np.ndarray:
    """Scores of the validation rows as at the best evaluation, [N], of which a trial's value is the metric.

    The calibration was fitted after it, on these rows.
    """
    fitted = model.calibrator
    model.calibrator = Calibrator().to(fitted.slope)
    try:
        return score_split(model, feature_set, "valid").scores
    finally:
        model.calibrator = fitted


def close_in_folder(root: Path, trial: FrozenTrial, state: str) -> bool:
    """Close the MLflow run of a trial whose worker died, after all that waits in its folder; whether that lies here.

    Args:
        root: work folder with the default store.
        trial: that was lost.
        state: what became of it: `retried` or `failed`.
    """
    folder = Path(trial.user_attrs[RUN]) if RUN in trial.user_attrs else None
    known = None if folder is None else tracked_id(folder)
    if folder is None or known is None:
        return False
    tracker = Tracker(root, folder / OUTBOX, "later")
    tracker.delivery.put(Tag(run=known, name=STATE, value=state))
    tracker.end_if_running(known)
    return True
