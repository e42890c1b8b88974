"""What is held against a workspace after a night: files made by hand, one of them wrong at a time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from benchmarks.month.checks import broken, mib_of, success_of, untold
from pipelines.operate.outcome import record_outcome
from pipelines.workspace import Workspace

NAME = "toy"


def night(work: Path, code: int) -> tuple[Workspace, dict[str, Any]]:
    """A workspace after a success and a night with this code, and what LAST_SUCCESS held between them."""
    workspace = Workspace(work)
    record_outcome(workspace, NAME, {"exit_code": 0, "seconds": 1.0, "status": "first"}, {})
    before = success_of(workspace, NAME)
    record_outcome(workspace, NAME, {"exit_code": code, "seconds": 2.0, "status": "second"}, {})
    return workspace, before


@pytest.mark.parametrize("code", [0, 3, 4, 6, 75])
def test_a_night_that_is_told_everywhere(tmp_path: Path, code: int) -> None:
    workspace, before = night(tmp_path, code)
    assert untold(workspace, NAME, code, f"quadrank: exit {code}", before) == []


def test_a_code_that_no_file_has_is_told_of_each(tmp_path: Path) -> None:
    workspace, before = night(tmp_path, 4)
    assert untold(workspace, NAME, 6, "quadrank: exit 4", before) == [
        "outcome.json says 4",
        "quadrank.prom says ['4.0']",
        "stderr ends with 'quadrank: exit 4'",
    ]


def test_a_success_that_was_not_kept_and_one_that_was_none(tmp_path: Path) -> None:
    workspace, _ = night(tmp_path, 0)
    assert "LAST_SUCCESS is of" in untold(workspace, NAME, 0, "", success_of(workspace, NAME))[0]
    workspace, _ = night(tmp_path / "other", 4)
    assert "LAST_SUCCESS is of" in untold(workspace, NAME, 4, "quadrank: exit 4", {})[0]


def test_nothing_has_succeeded_at_first(tmp_path: Path) -> None:
    assert success_of(Workspace(tmp_path), NAME) == {}


def test_a_workspace_without_a_feature_set_is_broken(tmp_path: Path) -> None:
    (found,) = broken(Workspace(tmp_path), NAME, None)
    assert str(tmp_path) in found


def test_a_file_with_two_names_takes_its_room_once(tmp_path: Path) -> None:
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
    (tmp_path / "one/data").write_bytes(bytes(2**20))
    os.link(tmp_path / "one/data", tmp_path / "other/data")
    (tmp_path / "other/more").write_bytes(bytes(2**19))
    (tmp_path / "other/link").symlink_to(tmp_path / "one/data")
    assert mib_of(tmp_path / "one", tmp_path / "other") == 1.5
