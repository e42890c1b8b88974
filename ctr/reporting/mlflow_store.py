"""The MLflow store that runs and registered models lie in: where it is, and a client of it.

It is `mlflow.db` (SQLite) and `mlartifacts/` in the work folder, or whatever `MLFLOW_TRACKING_URI` names. MLflow is
imported on first use: it takes seconds, which `quadrank --help` should not.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from features.errors import ConfigError


class MlflowStore:
    """Opens the store when it is first used.

    Args:
        root: work folder that holds the default store.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self.root / 'mlflow.db'}"

    @cached_property
    def mlflow(self) -> Any:
        """The package, without notes, progress bars and telemetry: a scheduled job sends nothing out."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        import mlflow

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)
        return mlflow

    @cached_property
    def client(self) -> Any:
        """The client of an initialised store. Raises ConfigError when the store cannot be used."""
        registry = os.environ.get("MLFLOW_REGISTRY_URI") or self.uri
        try:
            # Processes that meet a fresh SQLite store at once break each other's migration.
            with self._lock():
                client = self.mlflow.MlflowClient(self.uri, registry)
                client.search_experiments(max_results=1)
                client.search_registered_models(max_results=1)
        except self.mlflow.exceptions.MlflowException as error:
            raise ConfigError(
                f"{self.uri}: the MLflow store cannot be used: {error.message} Start the server, correct "
                "MLFLOW_TRACKING_URI, or unset it to keep runs in mlflow.db."
            ) from None
        return client

    def experiment_id(self, name: str) -> str:
        """The id of an experiment, which is made when it does not exist. Raises ConfigError where it was deleted."""
        client = self.client
        with self._lock():
            found = client.get_experiment_by_name(name)
            if found is None:
                served = self.uri.startswith(("http://", "https://", "databricks"))
                # A server knows where artifacts lie; a bare database would take the current folder.
                location = None if served else (self.root / "mlartifacts" / name).as_uri()
                return str(client.create_experiment(name, artifact_location=location))
        if found.lifecycle_stage != "active":
            raise ConfigError(
                f"{self.uri}: experiment {name!r} was deleted. Bring it back with `mlflow "
                f"experiments restore --experiment-id {found.experiment_id}`."
            )
        return str(found.experiment_id)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        folder = self.root / ".cache"
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "mlflow-store.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
