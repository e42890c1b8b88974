"""A workspace of small files in the places of feature sets, runs and bundles, and a registry in memory."""

from __future__ import annotations

import io
import json
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from rich.console import Console

from ctr.reporting.mlflow_registry import Registered, Version
from features.errors import StoreAwayError
from pipelines.operate.cleaning import clean
from pipelines.workspace import Workspace


@dataclass
class FakeRegistry:
    listed: dict[str, list[Version]] = field(default_factory=dict)
    removed: list[tuple[str, str, bool]] = field(default_factory=list)
    away: bool = False

    @property
    def store(self) -> Any:
        return self

    shown = "memory"

    @contextmanager
    def contact(self) -> Any:
        if self.away:
            raise StoreAwayError("memory: does not answer")
        yield self

    def versions(self, name: str) -> list[Version]:
        with self.contact():
            return self.listed.get(name, [])

    def get_alias(self, name: str, alias: str) -> Registered | None:
        named = [one for one in self.versions(name) if alias in one.aliases]
        return Registered(named[0].version, {"model_version": named[0].model_version}) if named else None

    def artifact_bytes(self, run_id: str) -> int:
        return 100

    def remove_version(self, name: str, version: Version, artifacts: bool) -> None:
        self.removed.append((name, version.version, artifacts))
        self.listed[name] = [one for one in self.listed[name] if one != version]


BEGAN = datetime.now(UTC)  # a test that asks twice for one run means the same


def run_id(days_ago: int, name: str = "shop") -> str:
    return f"{BEGAN - timedelta(days=days_ago):%Y%m%dT%H%M%SZ}-{name}-{days_ago:04x}"


def add_feature_set(workspace: Workspace, version: str, name: str = "shop", place: str = "feature_sets") -> Path:
    folder = workspace.root / place / name / version
    folder.mkdir(parents=True)
    (folder / "rows.arrow").write_bytes(b"x" * 1000)
    return folder


def add_run(workspace: Workspace, run: str, feature_set: str, finished: bool = True, name: str = "shop") -> Path:
    folder = workspace.runs / run
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"feature_set": f"feature_sets/{name}/{feature_set}"}))
    (folder / "checkpoint-9.safetensors").write_bytes(b"x" * 500)
    if finished:
        (folder / "metrics.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(b"x" * 50)
    return folder


def add_bundle(workspace: Workspace, run: str, feature_set: str, name: str = "shop") -> Path:
    folder = workspace.bundles(name) / run
    folder.mkdir(parents=True)
    (folder / "MANIFEST.json").write_text(json.dumps({"model_version": run, "feature_set": feature_set}))
    return folder


def cleaned(workspace: Workspace, keep: int = 1, yes: bool = False) -> dict[str, Any]:
    """What `gc` answers."""
    return clean(workspace, keep, yes, Console(file=io.StringIO()))


def unused(workspace: Workspace, keep: int = 1) -> dict[str, str]:
    """Kind of all that `gc` would remove, by place."""
    return {one["what"]: one["kind"] for one in cleaned(workspace, keep)["unused"]}
