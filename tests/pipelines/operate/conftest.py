"""A workspace with a registry in memory, and four days of runs in it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ctr.reporting.mlflow_registry import Version
from pipelines.workspace import Workspace
from tests.pipelines.operate.places import FakeRegistry, add_bundle, add_feature_set, add_run, run_id


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> FakeRegistry:
    registry = FakeRegistry()
    monkeypatch.setattr("pipelines.operate.cleaning.Registry", lambda root: registry)
    return registry


@pytest.fixture
def days(workspace: Workspace, registry: FakeRegistry) -> list[str]:
    """Runs of 40, 30, 20 and 10 days ago, each with a feature set and a bundle of its own."""
    runs = [run_id(days_ago) for days_ago in (40, 30, 20, 10)]
    for day, run in enumerate(runs):
        for path in (
            add_feature_set(workspace, f"set-{day}"),
            add_run(workspace, run, f"set-{day}"),
            add_bundle(workspace, run, f"set-{day}"),
        ):
            os.utime(path, (1000 + day, 1000 + day))
    registry.listed["quadrank-shop"] = [Version(str(9 - day), run, f"m{day}", ()) for day, run in enumerate(runs)]
    return runs
