"""The MLflow registry that servers read: register a bundle, let an alias name it, download it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctr.reporting.entries import PENDING, MoveAlias, Register, new_id, now_ms
from ctr.reporting.mlflow_flavor import BUNDLE, MODEL
from ctr.reporting.mlflow_store import MlflowStore
from ctr.reporting.outbox import Delivery
from ctr.serving.bundle import open_bundle
from features.errors import ConfigError, StoreAwayError


@dataclass(frozen=True)
class Version:
    """A version as the registry lists it.

    Args:
        version: its number.
        model_version: tag of that name: the training run that the bundle is of; empty without one.
        run_id: MLflow's id of the run that holds its artifacts.
        aliases: that name it.
    """

    version: str
    model_version: str
    run_id: str
    aliases: tuple[str, ...]


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
        delivery: of the tracker whose run the bundles belong to: where the store is away, they are registered, and the
            alias is moved, after what that run logged. None raises StoreAwayError instead.

    Example:
        >>> registry = Registry(Path("."))
        >>> with tracker.run("quadrank-movielens", "first", tags={}, params={}):
        ...     version = registry.register(bundle, "quadrank-movielens", tracker.run_id)
        >>> registry.set_alias("quadrank-movielens", "champion", version)
    """

    def __init__(self, root: Path = Path(), delivery: Delivery | None = None) -> None:
        self.delivery = delivery or Delivery(MlflowStore(root), None)
        self.store = self.delivery.store

    def register(self, bundle: Path, name: str, run_id: str) -> str:
        """Store a bundle in a run and register it as the next version of `name`.

        The model folder is MLflow's ONNX flavor with the whole bundle inside it: `mlflow.pyfunc` and
        `mlflow models serve` run the graph on encoded inputs, while `download_bundle` brings the bundle
        back for the ranker, which takes raw ids. Nothing in it is a pickle.

        Args:
            bundle: its folder.
            name: of the registered model, made when it does not exist.
            run_id: of the tracked run.

        Returns:
            The version's number, or `pending-…` where it will have one when the store answers again.

        Raises:
            DataError: not a bundle, or a changed one.
        """
        opened = open_bundle(bundle)
        entry = Register(id=new_id(), run=run_id, bundle=opened.path.resolve(), name=name)
        pending = f"{PENDING}{entry.id}"
        return self.delivery.put(entry).versions.get(pending, pending)

    def find_version(self, name: str, model_version: str) -> str | None:
        """The newest version of `name` whose bundle has this model version; None without one."""
        with self.store.contact() as client:
            found = client.search_model_versions(f"name = '{name}' and tags.model_version = '{model_version}'")
        return max((str(version.version) for version in found), key=int, default=None)

    def holds(self, name: str, version: str) -> bool:
        """Whether nobody took this version out.

        One that waits to be sent counts as there, and so does any while the store is away.
        """
        if version.startswith(PENDING):
            return True
        try:
            with self.store.contact() as client:
                client.get_model_version(name, version)
        except StoreAwayError:
            return True
        except self.store.mlflow.exceptions.MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise
        return True

    def set_alias(self, name: str, alias: str, version: str) -> bool:
        """Let `models:/<name>@<alias>` name this version; whether it does now, and not when the store answers again."""
        self.delivery.put(MoveAlias(name=name, alias=alias, version=version, moment=now_ms()))
        return not self.delivery.waits

    def tag_version(self, name: str, version: str, tags: Mapping[str, str]) -> None:
        """Tag a version, e.g. with what the gate found. Where the store is away it stays without: its run has them."""
        if version.startswith(PENDING):
            return
        with suppress(StoreAwayError), self.store.contact() as client:
            for key, value in tags.items():
                client.set_model_version_tag(name, version, key, value)

    def get_alias(self, name: str, alias: str) -> Registered | None:
        """The version that `models:/<name>@<alias>` names; None without such a model or alias."""
        try:
            with self.store.contact() as client:
                found = client.get_model_version_by_alias(name, alias)
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
            with self.store.contact():
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
            with self.store.contact() as client:
                if alias:
                    version = client.get_model_version_by_alias(name, alias).version
                return str(client.get_model_version_download_uri(name, version))
        except self.store.mlflow.exceptions.MlflowException as error:
            raise ConfigError(f"{model_uri}: not in the registry of {self.store.shown}: {error.message}") from None

    def versions(self, name: str) -> list[Version]:
        """All versions of `name`, the newest first; empty without such a model."""
        with self.store.contact() as client:
            found = client.search_model_versions(f"name = '{name}'")
            # Lists of versions may come without aliases.
            aliases = client.get_registered_model(name).aliases if found else {}
        named = {
            str(version): tuple(alias for alias, of in aliases.items() if of == version) for version in aliases.values()
        }
        listed = [
            Version(str(one.version), one.tags.get("model_version", ""), one.run_id, named.get(str(one.version), ()))
            for one in found
        ]
        return sorted(listed, key=lambda one: int(one.version), reverse=True)

    def artifact_bytes(self, run_id: str) -> int:
        """Bytes of the bundle and flavor that a run holds."""
        with self.store.contact() as client:
            return _listed_bytes(client, run_id, MODEL)

    def remove_version(self, name: str, version: Version, artifacts: bool) -> None:
        """Take a version out of the registry.

        Args:
            name: of the model.
            version: without aliases.
            artifacts: whether its run loses bundle and flavor, too; no other version may be of them.
        """
        with self.store.contact() as client:
            client.delete_model_version(name, version.version)
            if artifacts:
                uri = client.get_run(version.run_id).info.artifact_uri
                self.store.artifacts(uri).delete_artifacts(MODEL)


def _listed_bytes(client: Any, run_id: str, folder: str) -> int:
    found = client.list_artifacts(run_id, folder)
    return sum(_listed_bytes(client, run_id, one.path) if one.is_dir else int(one.file_size or 0) for one in found)
