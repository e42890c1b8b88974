"""The one MLflow run of a study: made by whichever worker comes first, and filled by the one that ends it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import optuna

from ctr.reporting.entries import LATER, BeginRun, later_id
from ctr.reporting.mlflow_runs import Tracker, beginning
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


def is_in_mlflow(name: str, storage: Any) -> bool:
    """Whether MLflow is known to have the run of a study, which need not exist."""
    if name not in optuna.get_all_study_names(storage):
        return False
    own = optuna.load_study(study_name=name, storage=storage).user_attrs.get(PARENT_RUN, LATER)
    return not str(own).startswith(LATER)


def parent_run(study: optuna.Study, settings: JobSettings, search: SearchSpace) -> str | BeginRun:
    """The study's MLflow run; its id is kept in the study, so that the trials of all workers are its children.

    Where MLflow is away it is how the run begins: whichever of the study's runs is sent first begins it. Call it while
    holding the lock of the study.
    """
    own = str(study.user_attrs.get(PARENT_RUN) or later_id())
    if not own.startswith(LATER):
        return own
    study.set_user_attr(PARENT_RUN, own)  # first: a kill in between must leave no run that nobody finds again
    name = study.study_name
    experiment, run_name = experiment_of(settings), f"sweep {name}"
    tags = {"git_revision": git_revision(), STUDY: name}
    params = {"model_file": str(settings.model), "search": search.model_dump(mode="json")}
    tracker = study_tracker(settings, name)
    with tracker.run(experiment, run_name, tags, params, begun_as=own):
        run_id = tracker.run_id
    if run_id.startswith(LATER):
        return beginning(own, experiment, run_name, tags)
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
    run: str | BeginRun,
    metrics: Mapping[str, float],
    params: Mapping[str, Any],
    files: Mapping[str, Any],
    figures: Mapping[str, Figure],
) -> None:
    """Log what came out of a study to its MLflow run; where MLflow is away, it waits and is sent by a later command.

    Args:
        settings: whose workspace has the store.
        study: its name.
        run: of the study, as of `parent_run`.
        metrics: final numbers.
        params: the best trial's settings; kept as tags `best.NAME`, since a later worker may better them.
        files: paths by folder of the artifacts.
        figures: by file name.
    """
    with _resumed(settings, study, run) as tracker:
        tracker.log_metrics(metrics)
        for name, value in params.items():
            tracker.set_tag(f"best.{name}", str(value))
        for place, path in files.items():
            tracker.log_file(path, place)
        for name, figure in figures.items():
            tracker.log_figure(figure, name)


def blank_best(settings: JobSettings, study: str, run: str | BeginRun, names: Collection[str]) -> None:
    """Take the values of an earlier winner out of the tags `best.NAME` of the study's MLflow run.

    Args:
        settings: whose workspace has the store.
        study: its name.
        run: of the study, as of `parent_run`.
        names: of searched settings that the winner does not have, since their `when` does not hold.
    """
    if not names:
        return
    with _resumed(settings, study, run) as tracker:
        for name in sorted(names):
            tracker.set_tag(f"best.{name}", "")


@contextmanager
def _resumed(settings: JobSettings, study: str, run: str | BeginRun) -> Iterator[Tracker]:
    """The MLflow run of a study, open; where MLflow is away, it begins with what is logged."""
    tracker = study_tracker(settings, study)
    if isinstance(run, BeginRun):
        tracker.delivery.put(run)
    with tracker.resume(run.run if isinstance(run, BeginRun) else run):
        yield tracker
