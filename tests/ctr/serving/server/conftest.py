"""Two bundles of one shop, exported once for all tests of the server in a process; each test module gets a copy."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from features.store.pointer import point_at
from tests.ctr.serving.shop import two_bundles


@pytest.fixture(scope="session")
def exported_bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_bundles(tmp_path_factory.mktemp("two-bundles"))


@pytest.fixture(scope="module")
def bundles(exported_bundles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`first`, `second` and a pointer to the first, of this module alone."""
    folder = shutil.copytree(exported_bundles, tmp_path_factory.mktemp("server") / "bundles")
    point_at(folder, "first")
    return folder
