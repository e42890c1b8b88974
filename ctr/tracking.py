"""MLflow, and nobody else talks to it: runs, curves, plots, and the registry that servers read.

The store is `mlflow.db` (SQLite) and `mlartifacts/` in the work folder, or whatever `MLFLOW_TRACKING_URI`
names. MLflow is imported on first use: it takes seconds, which `quadrank --help` should not.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ctr.bundle import RANKER, BundleManifest, open_bundle
from features.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Folder names inside a run: the ONNX flavor, and inside it the bundle that a server loads.
MODEL = "model"
BUNDLE = "bundle"

_PARAMS_A_CALL = 100
_LONGEST_PARAM = 6000


@dataclass(frozen=True)
class Registered:
    """One version of a registered model.

    Args:
        version: as MLflow numbers it: "1", "2", …
        tags: `model_version`, `feature_set`, `contract_fingerprint`, `git_revision`, and each metric of the
            bundle as `<split>_<metric>`, e.g. `test_auc`.
    """

    version: str
    tags: dict[str, str]


class Tracker:
    """Writes one run at a time; reads and writes the registry at any time.

    Args:
        root: work folder that holds the default store.

    Example:
        >>> tracker = Tracker(Path("."))
        >>> with tracker.run("quadrank-movielens", "first", tags={}, params={"train": {"epochs": 3}}):
        ...     tracker.log_curve_point(100, {"auc": 0.71})
    """

    def __init__(self, root: Path = Path()) -> None:
        self.root = root.resolve()
        self.uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self.root / 'mlflow.db'}"
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
        run = self._client.create_run(
            self._experiment_id(experiment),
            run_name=run_name,
            tags={**_origin(tags.get("git_revision")), **tags, **nested},
        )
        with self._open(run.info.run_id):
            self._log_params(params)
            yield self

    @contextmanager
    def resume(self, run_id: str) -> Iterator[Tracker]:
        """Open an existing run again around the block, to add to it."""
        self._client.update_run(run_id, status="RUNNING")
        with self._open(run_id):
            yield self

    def log_curve_point(self, step: int, values: Mapping[str, float]) -> None:
        """Add one point to each of the named curves."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        points = [Metric(name, float(value), now, step) for name, value in values.items()]
        self._client.log_batch(self.run_id, metrics=points)

    def log_metrics(self, values: Mapping[str, float]) -> None:
        """Record final numbers."""
        self.log_curve_point(0, values)

    def log_figure(self, figure: Figure, name: str) -> None:
        """Store a plot as `plots/<name>`."""
        self._client.log_figure(self.run_id, figure, f"plots/{name}", save_kwargs={"dpi": 150})

    def log_file(self, path: Path, folder: str | None = None) -> None:
        """Store a copy of a file, below `folder` of the run's artifacts."""
        self._client.log_artifact(self.run_id, str(path), folder)

    def set_tag(self, name: str, value: str) -> None:
        """Tag the open run."""
        self._client.set_tag(self.run_id, name, value)

    def register(self, bundle: Path, name: str) -> str:
        """Store a bundle in the open run and register it as the next version of `name`.

        The model folder is MLflow's ONNX flavor with the whole bundle inside it: `mlflow.pyfunc` and
        `mlflow models serve` run the graph on encoded inputs, while `download_bundle` brings the bundle
        back for the ranker, which takes raw ids. Nothing in it is a pickle.

        Raises:
            DataError: not a bundle, or a changed one.
        """
        from mlflow.exceptions import MlflowException

        opened = open_bundle(bundle)
        with tempfile.TemporaryDirectory() as scratch:
            flavor = Path(scratch) / MODEL
            _save_flavor(opened.path, flavor, self.run_id)
            self._client.log_artifacts(self.run_id, str(flavor), MODEL)
        self._client.log_artifacts(self.run_id, str(opened.path), f"{MODEL}/{BUNDLE}")
        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        made = self._client.create_model_version(
            name, source=f"runs:/{self.run_id}/{MODEL}", run_id=self.run_id, tags=_version_tags(opened.manifest)
        )
        return str(made.version)

    def find_version(self, name: str, model_version: str) -> str | None:
        """The newest version of `name` registered from the bundle of this model version; None if there is none."""
        found = self._client.search_model_versions(f"name = '{name}' and tags.model_version = '{model_version}'")
        return max((str(version.version) for version in found), key=int, default=None)

    def set_alias(self, name: str, alias: str, version: str) -> None:
        """Let `models:/<name>@<alias>` name this version."""
        self._client.set_registered_model_alias(name, alias, version)

    def get_alias(self, name: str, alias: str) -> Registered | None:
        """The version that `models:/<name>@<alias>` names; None without such a model or alias."""
        from mlflow.exceptions import MlflowException

        try:
            found = self._client.get_model_version_by_alias(name, alias)
        except MlflowException as error:
            # SQL stores answer a missing alias with the second code, a missing model with the first.
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise
        return Registered(str(found.version), dict(found.tags))

    def version_tags(self, name: str, alias: str) -> dict[str, str]:
        """Tags of the version an alias names; empty without such a model or alias."""
        found = self.get_alias(name, alias)
        return found.tags if found else {}

    def download_bundle(self, model_uri: str, folder: Path) -> Path:
        """Copy the bundle of `models:/NAME@ALIAS` or `models:/NAME/VERSION` into `folder`; returns its path.

        Raises:
            ConfigError: malformed address, or no such model, alias or version.
        """
        from mlflow.artifacts import download_artifacts
        from mlflow.exceptions import MlflowException

        source = self._source(model_uri)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            local = download_artifacts(
                artifact_uri=f"{source}/{BUNDLE}", dst_path=str(folder), tracking_uri=self.uri
            )
        except MlflowException as error:
            raise ConfigError(f"{model_uri}: {source} holds no bundle: {error.message}") from None
        return Path(local)

    @cached_property
    def _client(self) -> Any:
        """The client of an initialised store. Raises ConfigError when the store cannot be used."""
        mlflow = _quiet_mlflow()
        try:
            with self._lock():
                # Processes that meet a fresh SQLite store at once break each other's migration.
                client = mlflow.MlflowClient(self.uri, os.environ.get("MLFLOW_REGISTRY_URI") or self.uri)
                client.search_experiments(max_results=1)
                client.search_registered_models(max_results=1)
        except mlflow.exceptions.MlflowException as error:
            raise ConfigError(
                f"{self.uri}: the MLflow store cannot be used: {error.message} Start the server, correct "
                "MLFLOW_TRACKING_URI, or unset it to keep runs in mlflow.db."
            ) from None
        return client

    @contextmanager
    def _lock(self) -> Iterator[None]:
        folder = self.root / ".cache"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "mlflow-store.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _experiment_id(self, name: str) -> str:
        with self._lock():
            found = self._client.get_experiment_by_name(name)
            if found is None:
                served = self.uri.startswith(("http://", "https://", "databricks"))
                # A server decides where artifacts lie; a bare database would put them below the current folder.
                location = None if served else (self.root / "mlartifacts" / name).as_uri()
                return str(self._client.create_experiment(name, artifact_location=location))
        if found.lifecycle_stage != "active":
            raise ConfigError(
                f"{self.uri}: experiment {name!r} was deleted. Bring it back with `mlflow experiments restore "
                f"--experiment-id {found.experiment_id}`."
            )
        return str(found.experiment_id)
