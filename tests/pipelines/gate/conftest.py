"""Three bundles, and a registry in memory, for tests of who serves."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.gate import pointers
from pipelines.workspace import Workspace
from tests.pipelines.gate.moves import Store, bundle_in


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    made = Store()
    for module in ("pointers", "promote", "rollback"):
        monkeypatch.setattr(f"pipelines.gate.{module}.Registry", lambda root: made)
    monkeypatch.setattr(pointers, "Tracker", lambda root: made)
    return made


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Three bundles `a`, `b` and `c`."""
    made = Workspace(tmp_path)
    for name in ("a", "b", "c"):
        bundle_in(made.bundles("toy") / name, name)
    return made
