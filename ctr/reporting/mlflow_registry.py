"""The MLflow registry that servers read: register a bundle, let an alias name it, download it."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ctr.reporting.mlflow_flavor import BUNDLE, MODEL, save_flavor
from ctr.reporting.mlflow_store import MlflowStore
from ctr.serving.bundle import BundleManifest, open_bundle
from features.errors import ConfigError


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


class Registry:
    """Registered models of a store, each version a bundle.

    Args:
        root: work folder that holds the default store.

    Example:
        >>> registry = Registry(Path("."))
        >>> with tracker.run("quadrank-movielens", "first", tags={}, params={}):
        ...     version = registry.register(bundle, "quadrank-movielens", tracker.run_id)
        >>> registry.set_alias("quadrank-movielens", "champion", version)
    """

    def __init__(self, root: Path = Path()) -> None:
        self.store = MlflowStore(root)

    def register(self, bundle: Path, name: str, run_id: str) -> str:
        """Store a bundle in a run and register it as the next version of `name`.

        The model folder is MLflow's ONNX flavor with the whole bundle inside it: `mlflow.pyfunc` and
        `mlflow models serve` run the graph on encoded inputs, while `download_bundle` brings the bundle
        back for the ranker, which takes raw ids. Nothing in it is a pickle.

        Args:
            bundle: its folder.
            name: of the registered model, made when it does not exist.
            run_id: MLflow's id of the run.

        Raises:
            DataError: not a bundle, or a changed one.
        """
        opened = open_bundle(bundle)
        with tempfile.TemporaryDirectory() as scratch:
            flavor = Path(scratch) / MODEL
            save_flavor(opened.path, flavor, run_id)
            self.store.client.log_artifacts(run_id, str(flavor), MODEL)
        self.store.client.log_artifacts(run_id, str(opened.path), f"{MODEL}/{BUNDLE}")
        try:
            self.store.client.create_registered_model(name)
        except self.store.mlflow.exceptions.MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        made = self.store.client.create_model_version(
            name,
            source=f"runs:/{run_id}/{MODEL}",
            run_id=run_id,
            tags=_version_tags(opened.manifest),
        )
        return str(made.version)

    def find_version(self, name: str, model_version: str) -> str | None:
        """The newest version of `name` whose bundle has this model version; None without one."""
        found = self.store.client.search_model_versions(f"name = '{name}' and tags.model_version = '{model_version}'")
        return max((str(version.version) for version in found), key=int, default=None)

    def set_alias(self, name: str, alias: str, version: str) -> None:
        """Let `models:/<name>@<alias>` name this version."""
        self.store.client.set_registered_model_alias(name, alias, version)

    def tag_version(self, name: str, version: str, tags: Mapping[str, str]) -> None:
        """Tag a version, e.g. with what the gate found."""
        for key, value in tags.items():
            self.store.client.set_model_version_tag(name, version, key, value)

    def get_alias(self, name: str, alias: str) -> Registered | None:
        """The version that `models:/<name>@<alias>` names; None without such a model or alias."""
        try:
            found = self.store.client.get_model_version_by_alias(name, alias)
        except self.store.mlflow.exceptions.MlflowException as error:
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
            local = self.store.mlflow.artifacts.download_artifacts(
                artifact_uri=f"{source}/{BUNDLE}", dst_path=str(folder), tracking_uri=self.store.uri
            )
        except self.store.mlflow.exceptions.MlflowException as error:
            raise ConfigError(f"{model_uri}: {source} holds no bundle: {error.message}") from None
        return Path(local)

    def _source(self, model_uri: str) -> str:
        """Where the artifacts of a registered version lie."""
        match = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", model_uri)
        if match is None:
            raise ConfigError(f"{model_uri!r}: write it as models:/NAME@ALIAS or models:/NAME/VERSION.")
        name, alias, version = match.groups()
        try:
            if alias:
                version = self.store.client.get_model_version_by_alias(name, alias).version
            return str(self.store.client.get_model_version_download_uri(name, version))
        except self.store.mlflow.exceptions.MlflowException as error:
            raise ConfigError(f"{model_uri}: not in the registry of {self.store.uri}: {error.message}") from None


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
