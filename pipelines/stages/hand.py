"""What the stages of one job share: the feature set, the run, its model, and its one MLflow run, each opened once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path
from typing import Any

from ctr.config import Preset
from ctr.model.click_model import ClickModel
from ctr.reporting.mlflow_registry import Registry
from ctr.reporting.mlflow_runs import Tracker
from ctr.reporting.outbox import OUTBOX
from features.store.feature_set import FeatureSet
from pipelines.job.load_run import load_trained
from pipelines.job.summary import Summary
from pipelines.job.tracked import tracked_id
from pipelines.job.train import Job
from pipelines.job_settings import JobSettings
from pipelines.stages.plan import Results
from pipelines.stages.record import StageRecord
from pipelines.workspace import METRICS


class InHand:
    """The job in hand. As a context, it ends the MLflow run that a stage opened: FINISHED, FAILED or KILLED.

    Args:
        settings: of the job.
        preset: read from them.
    """

    def __init__(self, settings: JobSettings, preset: Preset) -> None:
        self.settings = settings
        self.preset = preset
        self.workspace = settings.workspace
        self.console = settings.console
        self.results: dict[str, Mapping[str, Any]] = {}
        self.model: ClickModel | None = None
        self.feature_set: FeatureSet | None = None
        self._tracker: Tracker | None = None
        self._open = ExitStack()

    def __enter__(self) -> InHand:
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)

    def data(self) -> FeatureSet:
        """The feature set of this job."""
        if self.feature_set is None:
            self.feature_set = FeatureSet.open(self.workspace.root / str(self.results["features"]["feature_set"]))
        return self.feature_set

    def run_dir(self) -> Path:
        """The folder of this job's run."""
        return self.workspace.runs / str(self.results["train"]["run_id"])

    def trained(self) -> ClickModel:
        """The model of this job's run: as it was trained here, or read from the run."""
        if self.model is None:
            self.model = load_trained(self.run_dir(), self.workspace).model
        return self.model

    def job(self) -> Job:
        """This job's run, trained already."""
        return Job(self.preset, self.data(), self.workspace, self.console, self.run_dir(), resumed=True)

    def open(self, run: AbstractContextManager[Tracker]) -> Tracker:
        """Hold an MLflow run open until the job ends."""
        self._tracker = self._open.enter_context(run)
        return self._tracker

    def tracker(self) -> Tracker:
        """The MLflow run of this job, opened again where no stage of this process did."""
        return self._tracker or self.open(self.job().reopened())

    def registry(self) -> Registry:
        """Where bundles of this job's run are registered: what cannot be told now waits with what the run logged."""
        return Registry(delivery=self.tracker().delivery)

    def fail(self, error: Exception) -> None:
        """End the MLflow run that is open as FAILED by this error, so that another can be opened."""
        self._tracker = None
        with suppress(type(error)):
            self._open.__exit__(type(error), error, error.__traceback__)

    def leave(self, trained: StageRecord) -> None:
        """No process will go on with the run of this record: its MLflow run must not look alive for ever."""
        run_id = trained.result.get("run_id")
        run_dir = self.workspace.runs / str(run_id)
        known = tracked_id(run_dir) if run_id else None
        if known is not None:
            Tracker(self.workspace.root, run_dir / OUTBOX).end_if_running(known)


def summary_of(hand: InHand) -> Summary:
    """What the newest results of all stages say."""
    run_dir, feature_set = hand.run_dir(), hand.data()
    found = json.loads((run_dir / METRICS).read_text(encoding="utf-8"))
    return Summary(
        run_id=run_dir.name,
        feature_set=str(feature_set.path),
        bundle=str(bundle_of(hand.workspace.root, hand.results)),
        rows={name: window.rows for name, window in feature_set.manifest.windows.items()},
        metrics=found["metrics"],
        controls=found["controls"],
        tasks=found["tasks"],
    )


def bundle_of(root: Path, results: Results) -> Path:
    """The folder of this job's bundle."""
    return root / str(results["export"]["bundle"])
