"""Stage 2: one tracked training run, with its evaluation and, where it is due, its target-only control."""

from __future__ import annotations

import json
import platform
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from ctr.config import Preset
from ctr.evaluation.baselines import base_rate_log_loss
from ctr.model.click_model import ClickModel
from ctr.reporting.entries import BeginRun, later_id
from ctr.reporting.figures import control_bars, learning_curve, reliability_diagram
from ctr.reporting.mlflow_runs import Tracker
from ctr.reporting.outbox import OUTBOX
from ctr.training.checkpoint import RECORD, saved_state
from ctr.training.loop import Evaluation, FitResult, predict_tasks
from ctr.training.warm.parent import Parent
from features.contract.contract import Contract
from features.errors import ConfigError
from features.store.atomic import write_text
from features.store.feature_set import FeatureSet
from pipelines.job.build import build, describe
from pipelines.job.evaluate import Scored, controls, require_both_labels, score_split, task_metrics
from pipelines.job.fitting import CALIBRATION, fit_and_calibrate, new_model, require_fit
from pipelines.job.load_run import TARGET_ONLY, WARM_START, parent_of, recent_control
from pipelines.job.messages import how_it_began, what_the_guard_did, worse_than_base_rate
from pipelines.job.summary import Summary, control_label, print_results
from pipelines.job.tracked import tracked_id
from pipelines.job_settings import JobSettings
from pipelines.operate.left_open import end_left_open
from pipelines.operate.log import LoggedConsole
from pipelines.operate.waiting import require_answer, say_sent, send_waiting
from pipelines.revision import git_revision, source_hash
from pipelines.workspace import CONFIG, METRICS, TRACKED, Workspace, config_of, run_lock, started_at

# With `train.controls: weekly`, how old a run may be whose control stands beside another run.
OLDEST_CONTROL = timedelta(days=7)


class Trained(NamedTuple):
    """A model with its best weights, calibrated, and how training went."""

    model: ClickModel
    result: FitResult


class Evaluated(NamedTuple):
    """A trained model and what it scored."""

    model: ClickModel
    summary: Summary


@dataclass(frozen=True)
class Job:
    """One training run: what it trains on, with which settings, and where it is recorded.

    Args:
        preset: settings of the model and of training.
        feature_set: the data.
        workspace: where the run lies.
        console: where people read.
        run_dir: the run's folder.
        resumed: whether it goes on in a folder of an earlier process.
        parent: the run whose weights it goes on from; None for a full training.
        calibrated_by: folder of the run whose calibration it takes, where it learns from the validation rows, too.
    """

    preset: Preset
    feature_set: FeatureSet
    workspace: Workspace
    console: Console
    run_dir: Path
    resumed: bool = False
    parent: Parent | None = None
    calibrated_by: Path | None = None

    @property
    def contract(self) -> Contract:
        """The contract of its data."""
        return self.feature_set.contract

    @classmethod
    def start(
        cls,
        preset: Preset,
        feature_set: FeatureSet,
        workspace: Workspace,
        console: Console,
        study: str | None = None,
        warm_start: str | None = None,
    ) -> Job:
        """A new run, or with `study` a new trial of that sweep, in a folder of its own.

        Raises:
            QuadRankError: as `parent_of`, with `warm_start`, and as `require_fit`; of a run, rows to measure on that
                have one label alone. No folder is made then.
        """
        name = feature_set.contract.name
        parent = None if warm_start is None else parent_of(warm_start, preset, feature_set, workspace, console)
        if study is None:
            require_both_labels(feature_set, feature_set.judged_by)
        require_fit(preset, feature_set, parent)
        run_dir = workspace.new_trial(study, name) if study else workspace.new_run(name)
        job = cls(preset, feature_set, workspace, console, run_dir, parent=parent)
        job.write_config()
        if isinstance(console, LoggedConsole):
            console.belongs_to(run_dir)
        return job

    @classmethod
    def resume(
        cls, run_id: str, preset: Preset, feature_set: FeatureSet, workspace: Workspace, console: Console
    ) -> Job:
        """A run that was started and not finished, to go on in its folder.

        Raises:
            ConfigError: no such run, it is finished, it was started on another contract, or the run that it goes on
                from is gone.
        """
        run_dir = workspace.unfinished_run(run_id)
        started = config_of(run_dir)
        if started["contract_fingerprint"] != feature_set.manifest.fingerprint:
            raise ConfigError(
                f"{run_dir}: started on another contract than {feature_set.contract.name!r} as it is now. Give --data "
                "and --set as the run was started with, or name another run."
            )
        if isinstance(console, LoggedConsole):
            console.belongs_to(run_dir)
        begun = started.get(WARM_START)
        parent = None if begun is None else parent_of(begun["run_id"], preset, feature_set, workspace, console)
        return cls(preset, feature_set, workspace, console, run_dir, resumed=True, parent=parent)

    @property
    def lineage(self) -> dict[str, Any] | None:
        """The run that it goes on from, and how many warm starts lie between the last full training and this run."""
        if self.parent is None:
            return None
        return {"run_id": self.parent.run_id, "generation": self.parent.generation + 1}

    def write_config(self) -> None:
        """Record everything the run needs to be understood or exported later."""
        manifest = self.feature_set.manifest
        record = {
            "preset": self.preset.model_dump(mode="json"),
            # Relative to the workspace, which may be moved or opened from elsewhere.
            "feature_set": self.workspace.inside(self.feature_set.path),
            "contract_fingerprint": manifest.fingerprint,
            WARM_START: self.lineage,
            "git_revision": git_revision(),
            "source_hash": source_hash(),
            "versions": {name: version(name) for name in ("torch", "polars", "onnxruntime", "numpy")},
            "python": platform.python_version(),
        }
        write_text(self.run_dir / CONFIG, json.dumps(record, indent=2))

    @contextmanager
    def tracked(
        self, parent_run: str | BeginRun | None = None, extra_tags: dict[str, str] | None = None
    ) -> Iterator[Tracker]:
        """Hold the run's one MLflow run open around the block; a failure inside marks it FAILED.

        A resumed run goes on in the MLflow run that it began in.

        Raises:
            LockError: another process is training this run.
        """
        with run_lock(self.run_dir):
            if self.resumed:
                self.workspace.unfinished_run(self.run_dir.name)  # another process may have finished it meanwhile
                self._say_where_it_goes_on()
            with self._tracked(parent_run, extra_tags or {}) as tracker:
                yield tracker

    @contextmanager
    def reopened(self) -> Iterator[Tracker]:
        """Hold the run's one MLflow run open around the block, to add what is made of a run that is trained.

        Raises:
            LockError: another process works in this run.
        """
        with run_lock(self.run_dir), self._tracked(None, {}) as tracker:
            yield tracker

    def _say_where_it_goes_on(self) -> None:
        state = saved_state(self.run_dir)
        if state is not None:
            self.console.print(f"resuming {self.run_dir} from its last checkpoint, step {state.step:,}")
            return
        if (self.run_dir / RECORD).is_file():
            return  # damaged, or of another version: whoever loads it says so
        self.console.print(f"{self.run_dir}: has no checkpoint, since it was stopped before its first: it starts anew")
        self.write_config()  # nothing of it was trained yet, with the settings it had or with any

    @contextmanager
    def _tracked(self, parent_run: str | BeginRun | None, extra_tags: dict[str, str]) -> Iterator[Tracker]:
        say_sent(send_waiting(self.workspace), self.console)
        # The study of a trial has its MLflow run already: what MLflow cannot take now is sent later.
        begin = self.preset.train.tracking if parent_run is None else "later"
        tracker = Tracker(self.workspace.root, self.run_dir / OUTBOX, begin)
        known = tracked_id(self.run_dir)
        if self.resumed and known is not None and tracker.has_begun(known):
            with tracker.resume(known):
                yield tracker
            return
        manifest = self.feature_set.manifest
        tags = {
            "git_revision": git_revision(),
            "contract_fingerprint": manifest.fingerprint,
            "feature_set": manifest.version,
            "run_folder": str(self.run_dir),
            "warm_started_from": "none" if self.parent is None else self.parent.run_id,
            **extra_tags,
        }
        # Before MLflow hears of it: a kill in between must leave no run that nobody finds again.
        own = known or later_id()
        write_text(self.run_dir / TRACKED, own)
        with tracker.run(
            experiment=f"quadrank-{self.contract.name}",
            run_name=self.run_dir.name,
            tags=tags,
            params={**self.preset.model_dump(mode="json"), "data": self.contract.name},
            parent_run=parent_run,
            begun_as=own,
        ):
            write_text(self.run_dir / TRACKED, tracker.run_id)
            yield tracker

    def fit(self, tracker: Tracker, on_evaluation: Callable[[Evaluation], None] | None = None) -> Trained:
        """Train and calibrate a model, logging the curve to the tracked run as it grows.

        Args:
            tracker: with the run open.
            on_evaluation: also called with each evaluation.
        """

        base = base_rate_log_loss(self.feature_set, "valid")
        evaluations, logged = 0, self._logged(tracker) if self.resumed else set()

        def record(evaluation: Evaluation) -> None:
            nonlocal evaluations
            evaluations += 1
            if evaluations == 1 and not self.resumed and evaluation.log_loss > base:
                self.console.print(worse_than_base_rate(evaluation.log_loss, base), style="yellow")
            if evaluation.step not in logged:
                tracker.log_curve_point(evaluation.step, _curve_point(evaluation))
            if on_evaluation is not None:
                on_evaluation(evaluation)

        model = new_model(self.preset.model, self.feature_set, self.preset.train.seed)
        parameters = sum(p.numel() for p in model.parameters())
        size = f", {parameters:,} parameters" if parameters else ""  # trees have none
        on = "" if self.parent is None else f" on from run {self.parent.run_id}"
        self.console.print(f"training {self.preset.model.architecture}{size}{on} -> {self.run_dir}")
        result, calibrated = fit_and_calibrate(
            model,
            self.feature_set,
            self.preset.train,
            self.run_dir,
            on_evaluation=record,
            resume=self.resumed,
            warm=self.parent,
            calibrated_by=self.calibrated_by,
        )
        if self.resumed:
            self._record_changes(tracker)
        if result.began is not None:
            self.console.print(how_it_began(result.began))
        for moment, found in (("before", calibrated.before), ("after", calibrated.after)):
            tracker.log_metrics({f"calibration.{moment}.valid_{name}": value for name, value in found.items()})
        tracker.log_metrics(
            {
                "train.rows_per_second": result.rows_per_second,
                "train.seconds": result.seconds,
                "train.skipped_steps": result.skipped,
                "train.rollbacks": result.rollbacks,
            }
        )
        if result.skipped:
            self.console.print(what_the_guard_did(result), style="yellow")
        tracker.log_figure(learning_curve([one.model_dump() for one in result.curve]), "learning_curve.png")
        self.console.print(
            f"  {result.epochs_run:.2f} epochs in {result.seconds:.0f} s, {result.rows_per_second:,.0f} rows/s"
            + (", stopped early" if result.stopped_early else "")
        )
        return Trained(model, result)

    def _record_changes(self, tracker: Tracker) -> None:
        """Other settings than the run was started with: its record has them, and a tag of its MLflow run names them."""
        record = config_of(self.run_dir)
        before, now = record["preset"], self.preset.model_dump(mode="json")
        changed = [
            f"{section}.{key}={value}"
            for section, values in now.items()
            for key, value in values.items()
            if before[section].get(key) != value
        ]
        if changed:
            self.console.print(f"{self.run_dir.name} goes on with {', '.join(changed)}")
            tracker.set_tag("resumed_with", ", ".join(changed))
            write_text(self.run_dir / CONFIG, json.dumps(record | {"preset": now}, indent=2))

    def _logged(self, tracker: Tracker) -> set[int]:
        """Steps that the MLflow run has a point of; those that a kill kept from it are sent first."""
        logged, state = tracker.logged_steps("valid.log_loss"), saved_state(self.run_dir)
        for evaluation in state.curve if state else []:
            if evaluation.step not in logged:
                tracker.log_curve_point(evaluation.step, _curve_point(evaluation))
                logged.add(evaluation.step)
        return logged

    def train_and_evaluate(self, tracker: Tracker) -> Evaluated:
        """Fit, then `evaluate`. Raises DataError before that where the rows to measure on have one label alone.

        Args:
            tracker: with the run open.
        """
        require_both_labels(self.feature_set, self.feature_set.judged_by)
        model = self.fit(tracker).model
        return Evaluated(model, self.evaluate(tracker, model))

    def evaluate(self, tracker: Tracker, model: ClickModel) -> Summary:
        """Score the test window (valid where test has no labels) beside the baselines, and record it all.

        Args:
            tracker: with the run open.
            model: with the run's weights.
        """
        split = self.feature_set.judged_by
        test = score_split(model, self.feature_set, split)
        summary = Summary(run_id=self.run_dir.name, feature_set=str(self.feature_set.path))
        summary.rows = {name: window.rows for name, window in self.feature_set.manifest.windows.items()}
        summary.metrics = {split: test.metrics()}
        summary.tasks = {split: task_metrics(self.feature_set, split, predict_tasks(model, self.feature_set, split))}
        control = self._target_only(test)
        summary.controls = {} if control is None else {TARGET_ONLY: control}
        summary.controls |= controls(self.feature_set, split, self.preset.train.calibration)
        print_results(
            self.console,
            f"{self.contract.name}, {split} window",
            summary,
            split,
            self.preset.model.architecture,
        )
        self._record(tracker, summary, test)
        return summary

    def _target_only(self, test: Scored) -> dict[str, Any] | None:
        """Metrics of the same model without history, trained alike, and the run and day that trained it.

        They say what the past is worth. `train.controls` decides whether this run trains it; None where none does.

        Args:
            test: scores of this run's model, which is the control itself where it reads no history.
        """
        started, when = started_at(self.run_dir.name) or datetime.now(UTC), self.preset.train.controls
        origin = {"run_id": self.run_dir.name, "day": f"{started:%Y-%m-%d}"}
        if not self.preset.model.use_history:
            return {**test.metrics(), **origin}
        if when == "never":
            self.console.print("no target-only control: train.controls is never")
            return None
        folder = self.run_dir / TARGET_ONLY
        if when == "weekly" and not folder.is_dir():  # one that was begun is finished
            oldest = datetime.now(UTC) - OLDEST_CONTROL
            recent: dict[str, Any] | None = recent_control(self.preset, self.feature_set, self.workspace, oldest)
            if recent is not None:
                self.console.print(
                    f"target-only control: of run {recent['run_id']}, {recent['day']}, on the rows of that day. It is "
                    f"trained again after {OLDEST_CONTROL.days} days, or with --set train.controls=always"
                )
                return recent
        folder.mkdir(exist_ok=True)
        config = self.preset.model.model_copy(update={"use_history": False, "tasks": ()})
        model = new_model(config, self.feature_set, self.preset.train.seed)
        self.console.print("training the target-only control (the same model without history)")
        fit_and_calibrate(model, self.feature_set, self.preset.train, folder, resume=True)
        return {**score_split(model, self.feature_set, self.feature_set.judged_by).metrics(), **origin}

    def _record(self, tracker: Tracker, summary: Summary, test: Scored) -> None:
        record = {"metrics": summary.metrics, "controls": summary.controls, "tasks": summary.tasks}
        split = self.feature_set.judged_by
        flat = {f"{split}.{key}": value for key, value in summary.metrics[split].items()}
        for task, metrics in summary.tasks[split].items():
            flat |= {f"{split}.{task}.{key}": value for key, value in metrics.items()}
        for control, metrics in summary.controls.items():
            flat |= {
                f"control.{control}.{key}": value for key, value in metrics.items() if key not in ("run_id", "day")
            }
        tracker.log_metrics(flat)
        tracker.set_tag("control.target_only.run", summary.controls.get(TARGET_ONLY, {}).get("run_id", "none"))
        tracker.log_figure(reliability_diagram(test.labels, test.scores, test.weights), "calibration.png")
        bars = {self.preset.model.architecture: summary.metrics[split]}
        bars |= {control_label(name, found, summary.run_id): found for name, found in summary.controls.items()}
        tracker.log_figure(control_bars(bars), "controls.png")
        text = json.dumps(record, indent=2)
        with tempfile.TemporaryDirectory() as scratch:
            copy = Path(scratch) / METRICS
            copy.write_text(text, encoding="utf-8")
            for file in (copy, *(self.run_dir / name for name in (CONFIG, "curve.jsonl", CALIBRATION))):
                tracker.log_file(file, "run")
        # Last of all: it says that the run is finished, and nothing reopens it from then on.
        write_text(self.run_dir / METRICS, text)


def train_run(settings: JobSettings, resume: str | None) -> Summary:
    """Build or reuse the feature set, then train and evaluate one run: what `quadrank train` does.

    Args:
        settings: data, model and training.
        resume: id of an unfinished run to go on with, or `latest`; None starts a new one.

    Raises:
        QuadRankError: a setting, the data or the run cannot be used.
    """
    preset = settings.preset()  # before the build: neither a wrong key nor a wrong run must wait for it
    if resume is not None:
        resume = settings.workspace.unfinished_run(resume).name
    require_answer(settings.workspace, preset.train.tracking)
    end_left_open(settings.workspace)
    result = build(settings.source, settings.workspace)
    settings.console.print(describe(result))
    place = (preset, result.feature_set, settings.workspace, settings.console)
    job = Job.start(*place, warm_start=settings.warm_start) if resume is None else Job.resume(resume, *place)
    with job.tracked() as tracker:
        return job.train_and_evaluate(tracker).summary


def _curve_point(evaluation: Evaluation) -> dict[str, float]:
    """An evaluation's numbers, named by the rows they come from."""
    values = evaluation.metrics()
    names = ("train_loss", "train_click_loss", "learning_rate")
    training = {f"train.{name.removeprefix('train_')}": values.pop(name) for name in names}
    return training | {f"valid.{name}": value for name, value in values.items()}
