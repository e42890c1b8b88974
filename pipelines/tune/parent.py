"""The one MLflow run of a study: made by whichever worker comes first, and filled by the one that ends it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import optuna

from ctr.reporting.entries import LATER, later_id
from ctr.reporting.mlflow_runs import Tracker
from ctr.reporting.mlflow_sweeps import STUDY
from ctr.reporting.outbox import OUTBOX
from pipelines.job_settings import JobSettings
from pipelines.revision import git_revision
from pipelines.tune.search.space import SearchSpace
from pipelines.workspace import TUNE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PARENT_RUN = "mlflow_run_id"
OF_STUDY = "study"  # folder beside those of trials: the outbox of the MLflow run of the study


def parent_run(study: optuna.Study, settings: JobSettings, search: SearchSpace) -> str:
    """The study's MLflow run; its id is kept in the study, so that the trials of all workers are its children.

    Call it while holding the lock of the study.
    """
    own = str(study.user_attrs.get(PARENT_RUN) or later_id())
    if not own.startswith(LATER):
        return own
    study.set_user_attr(PARENT_RUN, own)  # first: a kill in between must leave no run that nobody finds again
    tracker = Tracker(settings.workspace.root)
    with tracker.run(
        experiment=experiment_of(settings),
        run_name=f"sweep {study.study_name}",
        tags={"git_revision": git_revision(), STUDY: study.study_name},
        params={"model_file": str(settings.model), "search": search.model_dump(mode="json")},
        begun_as=own,
    ):
        run_id = tracker.run_id
    study.set_user_attr(PARENT_RUN, run_id)
    return run_id


def experiment_of(settings: JobSettings) -> str:
    """The MLflow experiment of a study and its trials."""
    return f"quadrank-{settings.source.contract.name}"


def study_tracker(settings: JobSettings, study: str) -> Tracker:
    """Logs what belongs to no trial's folder; where MLflow is away, it waits and is sent by a later command."""
    folder = settings.workspace.runs / TUNE / study / OF_STUDY
    folder.mkdir(parents=True, exist_ok=True)
    return Tracker(settings.workspace.root, folder / OUTBOX, "later")


def record_parent(
    settings: JobSettings,
    study: str,
    run_id: str,
    metrics: Mapping[str, float],
    params: Mapping[str, Any],
    files: Mapping[str, Any],
    figures: Mapping[str, Figure],
) -> None:
    """Log what came out of a study to its MLflow run; where MLflow is away, it waits and is sent by a later command.

    Args:
        settings: whose workspace has the store.
        study: its name.
        run_id: of the study.
        metrics: final numbers.
        params: the best trial's settings; kept as tags `best.NAME`, since a later worker may better them.
        files: paths by folder of the artifacts.
        figures: by file name.
    """
    tracker = study_tracker(settings, study)
    with tracker.resume(run_id):
        tracker.log_metrics(metrics)
        for name, value in params.items():
            tracker.set_tag(f"best.{name}", str(value))
        for place, path in files.items():
            tracker.log_file(path, place)
        for name, figure in figures.items():
            tracker.log_figure(figure, name)
