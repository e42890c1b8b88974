"""A job that ran to its end, and copies of its workspace."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import pipelines.gate.pointers
import pipelines.stages.hand
import pipelines.stages.run
import pipelines.stages.steps
from pipelines.job.summary import Summary
from tests.pipelines.stages.shop import PASSED, Shop, shop_in


@pytest.fixture(scope="module")
def the_gate_passes() -> Iterator[None]:
    """Its log has random clicks, which no model predicts better than popularity does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipelines.stages.steps, "judge", lambda *_: PASSED)
        yield


@pytest.fixture(scope="module")
def whole(the_gate_passes: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Shop, Summary]:
    """A job that nothing interrupts. Tests that change its workspace work in a copy."""
    shop = shop_in(tmp_path_factory.mktemp("whole"))
    return shop, shop.run()


@pytest.fixture
def copy(whole: tuple[Shop, Summary], tmp_path: Path) -> Shop:
    """The same log and workspace, after the job."""
    shutil.copytree(whole[0].folder, tmp_path / "copy")
    return Shop(tmp_path / "copy")
