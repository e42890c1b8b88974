"""A registry in memory, three small bundles, and what lets one of them serve."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from ctr.serving.bundle import Bundle, open_bundle, publish, seal
from features.store.pointer import follow
from pipelines.gate.history import read_moves
from pipelines.gate.pointers import move_alias, move_current, register
from pipelines.workspace import Workspace
from tests.ctr.serving.test_bundle import METADATA, fill

QUIET = Console(quiet=True)
NAME = "quadrank-toy"


class Store:
    """Registered versions and aliases in memory, and the runs that versions are registered in."""

    def __init__(self) -> None:
        self.versions: list[str] = []  # model versions; the first is version "1"
        self.alias: str | None = None  # a version
        self.tags: dict[str, dict[str, str]] = {}
        self.runs: list[dict[str, Any]] = []
        self.run_id = "mlflow-1"
        self.down = False
        self.waits = False

    def find_version(self, name: str, model_version: str) -> str | None:
        assert name == NAME
        return str(self.versions.index(model_version) + 1) if model_version in self.versions else None

    def holds(self, name: str, version: str) -> bool:
        assert name == NAME
        return 0 < int(version) <= len(self.versions)

    def register(self, path: Path, name: str, run_id: str) -> str:
        assert (name, run_id) == (NAME, self.run_id)
        self.versions.append(open_bundle(path).manifest.model_version)
        return str(len(self.versions))

    def set_alias(self, name: str, alias: str, version: str) -> bool:
        assert (name, alias) == (NAME, "champion")
        if self.down:
            raise ConnectionError("registry")
        if not self.waits:
            self.alias = version
        return not self.waits

    def version_tags(self, name: str, alias: str) -> dict[str, str]:
        assert (name, alias) == (NAME, "champion")
        return {"model_version": self.versions[int(self.alias) - 1]} if self.alias else {}

    def tag_version(self, name: str, version: str, tags: Mapping[str, str]) -> None:
        self.tags[version] = dict(tags)

    def download_bundle(self, uri: str, folder: Path) -> Path:
        assert uri == "models:/quadrank-toy@champion"
        (folder / "bundle").mkdir()
        return folder / "bundle"

    @contextmanager
    def run(self, **described: Any) -> Iterator[None]:
        self.runs.append(described)
        yield


def bundle_in(path: Path, version: str) -> Bundle:
    with publish(path) as folder:
        fill(folder)
        seal(folder, METADATA.model_copy(update={"model_version": version}))
    return open_bundle(path)


def serve(name: str, workspace: Workspace, store: Store) -> list[str]:
    return make_champion(open_bundle(workspace.bundles("toy") / name), workspace, store)


def make_champion(bundle: Bundle, workspace: Workspace, store: Store, why: str = "good") -> list[str]:
    version = register(bundle, workspace)
    return [move_current(bundle, workspace, "promote", why, {"auc": 0.7}), move_alias(bundle, version, store)]  # type: ignore[arg-type]


def state(workspace: Workspace, store: Store) -> tuple[str, str, str | None]:
    """What CURRENT, the history and the alias name."""
    bundles = workspace.bundles("toy")
    alias = store.version_tags(NAME, "champion").get("model_version")
    return follow(bundles).name, read_moves(bundles)[-1].after, alias
