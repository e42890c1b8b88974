"""MLflow, and nobody else talks to it: runs, curves, plots, and the registry that servers read.

The store is `mlflow.db` (SQLite) and `mlartifacts/` in the work folder, or whatever `MLFLOW_TRACKING_URI`
names. MLflow is imported on first use: it takes seconds, which `quadrank --help` should not.
"""

from __future__ import annotations

import fcntl
import getpass
import logging
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ctr.serving.bundle import RANKER, BundleManifest, open_bundle
from features.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Folder names inside a run: the ONNX flavor, and inside it the bundle that a server loads.
MODEL = "model"
BUNDLE = "bundle"

_PARAMS_A_CALL = 100
_LONGEST_PARAM = 6000
_LONGEST_TAG = 5000


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
        """Open an existing run again around the block, to add to it.

        Raises:
            ConfigError: the tracking store does not know it.
        """
        try:
            self._client.update_run(run_id, status="RUNNING")
        except self._mlflow.exceptions.MlflowException as error:
            raise ConfigError(
                f"MLflow run {run_id}: not in the tracking store {self.uri} ({error.message}). Set "
                "MLFLOW_TRACKING_URI to the store the run began in, or start a new run."
            ) from None
        with self._open(run_id):
            yield self

    def log_curve_point(self, step: int, values: Mapping[str, float]) -> None:
        """Add one point to each of the named curves."""
        now = int(time.time() * 1000)
        points = [self._mlflow.entities.Metric(name, float(value), now, step) for name, value in values.items()]
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
        opened = open_bundle(bundle)
        with tempfile.TemporaryDirectory() as scratch:
            flavor = Path(scratch) / MODEL
            _save_flavor(opened.path, flavor, self.run_id)
            self._client.log_artifacts(self.run_id, str(flavor), MODEL)
        self._client.log_artifacts(self.run_id, str(opened.path), f"{MODEL}/{BUNDLE}")
        try:
            self._client.create_registered_model(name)
        except self._mlflow.exceptions.MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        made = self._client.create_model_version(
            name,
            source=f"runs:/{self.run_id}/{MODEL}",
            run_id=self.run_id,
            tags=_version_tags(opened.manifest),
        )
        return str(made.version)

    def find_version(self, name: str, model_version: str) -> str | None:
        """The newest version of `name` whose bundle has this model version; None without one."""
        found = self._client.search_model_versions(f"name = '{name}' and tags.model_version = '{model_version}'")
        return max((str(version.version) for version in found), key=int, default=None)

    def set_alias(self, name: str, alias: str, version: str) -> None:
        """Let `models:/<name>@<alias>` name this version."""
        self._client.set_registered_model_alias(name, alias, version)

    def get_alias(self, name: str, alias: str) -> Registered | None:
        """The version that `models:/<name>@<alias>` names; None without such a model or alias."""
        try:
            found = self._client.get_model_version_by_alias(name, alias)
        except self._mlflow.exceptions.MlflowException as error:
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
        source = self._source(model_uri)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            local = self._mlflow.artifacts.download_artifacts(
                artifact_uri=f"{source}/{BUNDLE}", dst_path=str(folder), tracking_uri=self.uri
            )
        except self._mlflow.exceptions.MlflowException as error:
            raise ConfigError(f"{model_uri}: {source} holds no bundle: {error.message}") from None
        return Path(local)

    @cached_property
    def _mlflow(self) -> Any:
        """MLflow without notes, progress bars and telemetry: a scheduled job sends nothing out."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        import mlflow

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)
        return mlflow

    @cached_property
    def _client(self) -> Any:
        """The client of an initialised store. Raises ConfigError when the store cannot be used."""
        registry = os.environ.get("MLFLOW_REGISTRY_URI") or self.uri
        try:
            # Processes that meet a fresh SQLite store at once break each other's migration.
            with self._lock():
                client = self._mlflow.MlflowClient(self.uri, registry)
                client.search_experiments(max_results=1)
                client.search_registered_models(max_results=1)
        except self._mlflow.exceptions.MlflowException as error:
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
        client = self._client
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
    def _open(self, run_id: str) -> Iterator[None]:
        self._run_id = run_id
        try:
            yield
        except Exception as error:
            self.set_tag("error", f"{type(error).__name__}: {error}"[:_LONGEST_TAG])
            self._client.set_terminated(run_id, "FAILED")
            raise
        except BaseException:
            self._client.set_terminated(run_id, "KILLED")
            raise
        else:
            self._client.set_terminated(run_id, "FINISHED")
        finally:
            self._run_id = None

    def _log_params(self, params: Mapping[str, Any]) -> None:
        flat = [self._mlflow.entities.Param(name, str(value)[:_LONGEST_PARAM]) for name, value in _flattened(params)]
        for start in range(0, len(flat), _PARAMS_A_CALL):
            self._client.log_batch(self.run_id, params=flat[start : start + _PARAMS_A_CALL])

    def _source(self, model_uri: str) -> str:
        """Where the artifacts of a registered version lie."""
        match = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", model_uri)
        if match is None:
            raise ConfigError(f"{model_uri!r}: write it as models:/NAME@ALIAS or models:/NAME/VERSION.")
        name, alias, version = match.groups()
        try:
            if alias:
                version = self._client.get_model_version_by_alias(name, alias).version
            return str(self._client.get_model_version_download_uri(name, version))
        except self._mlflow.exceptions.MlflowException as error:
            raise ConfigError(f"{model_uri}: not in the registry of {self.uri}: {error.message}") from None


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


def _version_tags(manifest: BundleManifest) -> dict[str, str]:
    metrics = {
        f"{split}_{name}": str(value) for split, values in manifest.metrics.items() for name, value in values.items()
    }
    return {
        "model_version": manifest.model_version,
        "feature_set": manifest.feature_set,
        "contract_fingerprint": manifest.fingerprint,
        "git_revision": manifest.git_revision,
        **metrics,
    }


def _save_flavor(bundle: Path, folder: Path, run_id: str) -> None:
    """MLflow's ONNX flavor of a bundle that will lie in `folder`/bundle; tables are not copied.

    The graph is small once its tables are external, and a relative location may name a subfolder: the
    flavor's own `model.onnx` points into the bundle, so that MLflow's loader finds MLmodel beside it and
    the bundle keeps exactly the files of its manifest.
    """
    import mlflow.onnx
    import onnx
    from mlflow.models import Model

    graph = onnx.load(bundle / RANKER, load_external_data=False)
    for tensor in graph.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = f"{BUNDLE}/{entry.value}"
    signature, example = _signature(graph)
    mlflow.onnx.save_model(
        graph,
        folder,
        mlflow_model=Model(artifact_path=MODEL, run_id=run_id),
        signature=signature,
        input_example=example,
        # Given, because MLflow would load the model to find them, and its tables are not there yet.
        pip_requirements=[f"{name}=={metadata.version(name)}" for name in ("mlflow", "numpy", "onnx", "onnxruntime")],
        onnx_execution_providers=["CPUExecutionProvider"],
        onnx_session_options={"intra_op_num_threads": 1, "inter_op_num_threads": 1},
        save_as_external_data=False,
    )


def _signature(model: Any) -> tuple[Any, dict[str, np.ndarray]]:
    """The graph's inputs and outputs as MLflow writes them, and an example of two of each named axis.

    Written by hand: inferring it from an example would turn an axis of one (the user) into any number.
    The example holds index 1, the unknown value of every table, so it is legal for each bundle.
    """
    import onnx
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    def described(values: Any) -> dict[str, tuple[np.dtype, list[int]]]:
        tensors = {value.name: value.type.tensor_type for value in values}
        return {
            name: (
                np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)),
                [axis.dim_value if axis.HasField("dim_value") else -1 for axis in tensor.shape.dim],
            )
            for name, tensor in tensors.items()
        }

    def schema(tensors: dict[str, tuple[np.dtype, list[int]]]) -> Any:
        return Schema([TensorSpec(dtype, tuple(shape), name) for name, (dtype, shape) in tensors.items()])

    inputs = described(model.graph.input)
    example = {
        name: np.ones([2 if size == -1 else size for size in shape], dtype) for name, (dtype, shape) in inputs.items()
    }
    return ModelSignature(schema(inputs), schema(described(model.graph.output))), example
