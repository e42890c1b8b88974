"""Runs in MLflow: start one or resume it, log curves, numbers, figures and files to it, end it with its status."""

from __future__ import annotations

import getpass
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctr.reporting.mlflow_store import MlflowStore
from features.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PARAMS_A_CALL = 100
_LONGEST_PARAM = 6000
_LONGEST_TAG = 5000


class Tracker:
    """Writes one run at a time.

    Args:
        root: work folder that holds the default store.

    Example:
        >>> tracker = Tracker(Path("."))
        >>> with tracker.run("quadrank-movielens", "first", tags={}, params={"train": {"epochs": 3}}):
        ...     tracker.log_curve_point(100, {"auc": 0.71})
    """

    def __init__(self, root: Path = Path()) -> None:
        self.store = MlflowStore(root)
        self._run_id: str | None = None

    @property
    def run_id(self) -> str:
        """MLflow's id of the open run. Raises RuntimeError outside of `run` and `resume`."""
        if self._run_id is None:
            raise RuntimeError("no MLflow run is open: log inside `with tracker.run(...)`")
        return self._run_id

    @contextmanager
    def run(
        self,
        experiment: str,
        run_name: str,
        tags: Mapping[str, str],
        params: Mapping[str, Any],
        parent_run_id: str | None = None,
    ) -> Iterator[Tracker]:
        """Open a run around the block: FINISHED after it, FAILED when it raises, KILLED when interrupted.

        Args:
            experiment: made when it does not exist.
            run_name: shown in the list of runs.
            tags: text by name.
            params: nested mappings are flattened to `train.batch_size`.
            parent_run_id: nests the run under this one.

        Raises:
            ConfigError: the store cannot be used, or the experiment was deleted in it.
        """
        nested = {"mlflow.parentRunId": parent_run_id} if parent_run_id else {}
        run = self.store.client.create_run(
            self.store.experiment_id(experiment),
            run_name=run_name,
            tags={**_origin(tags.get("git_revision")), **tags, **nested},
        )
        with self._open(run.info.run_id):
            self._log_params(params)
            yield self

    @contextmanager
    def resume(self, run_id: str) -> Iterator[Tracker]:
        """Open an existing run again around the block, to add to it.

        Raises:
            ConfigError: the tracking store does not know it.
        """
        try:
            self.store.client.update_run(run_id, status="RUNNING")
        except self.store.mlflow.exceptions.MlflowException as error:
            raise ConfigError(
                f"MLflow run {run_id}: not in the tracking store {self.store.uri} ({error.message}). Set "
                "MLFLOW_TRACKING_URI to the store the run began in, or start a new run."
            ) from None
        with self._open(run_id):
            yield self

    def mark_killed(self, run_id: str) -> None:
        """End a run that no process will go on with, if the store knows it and nothing ended it before."""
        try:
            if self.store.client.get_run(run_id).info.status == "RUNNING":
                self.store.client.set_terminated(run_id, "KILLED")
        except self.store.mlflow.exceptions.MlflowException:
            return  # a store that was emptied since: it has no run that could look alive

    def log_curve_point(self, step: int, values: Mapping[str, float]) -> None:
        """Add one point to each of the named curves."""
        now = int(time.time() * 1000)
        points = [self.store.mlflow.entities.Metric(name, float(value), now, step) for name, value in values.items()]
        self.store.client.log_batch(self.run_id, metrics=points)

    def logged_steps(self, name: str) -> set[int]:
        """Steps at which the open run has a point of this curve."""
        return {point.step for point in self.store.client.get_metric_history(self.run_id, name)}

    def log_metrics(self, values: Mapping[str, float]) -> None:
        """Record final numbers."""
        self.log_curve_point(0, values)

    def log_figure(self, figure: Figure, name: str) -> None:
        """Store a plot as `plots/<name>`."""
        self.store.client.log_figure(self.run_id, figure, f"plots/{name}", save_kwargs={"dpi": 150})

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Store a copy of a file, below `folder` of the run's artifacts."""
        self.store.client.log_artifact(self.run_id, str(path), folder)

    def set_tag(self, name: str, value: str) -> None:
        """Tag the open run."""
        self.store.client.set_tag(self.run_id, name, value)

    @contextmanager
    def _open(self, run_id: str) -> Iterator[None]:
        self._run_id = run_id
        try:
            yield
        except Exception as error:
            self.set_tag("error", f"{type(error).__name__}: {error}"[:_LONGEST_TAG])
            self.store.client.set_terminated(run_id, "FAILED")
            raise
        except BaseException:
            self.store.client.set_terminated(run_id, "KILLED")
            raise
        else:
            self.store.client.set_terminated(run_id, "FINISHED")
        finally:
            self._run_id = None

    def _log_params(self, params: Mapping[str, Any]) -> None:
        flat = [
            self.store.mlflow.entities.Param(name, str(value)[:_LONGEST_PARAM]) for name, value in _flattened(params)
        ]
        for start in range(0, len(flat), _PARAMS_A_CALL):
            self.store.client.log_batch(self.run_id, params=flat[start : start + _PARAMS_A_CALL])


def _origin(git_revision: str | None) -> dict[str, str]:
    """The tags that MLflow's own list of runs shows as user, source and version."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        # A container may run under a user id that has no name.
        user = str(os.getuid())
    tags = {"mlflow.user": user, "mlflow.source.name": Path(sys.argv[0]).name, "mlflow.source.type": "LOCAL"}
    return {**tags, "mlflow.source.git.commit": git_revision} if git_revision else tags


def _flattened(params: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in params.items():
        if isinstance(value, Mapping):
            yield from _flattened(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
