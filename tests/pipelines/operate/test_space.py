"""Room for a job is asked for before it starts, by what the last one took."""

from __future__ import annotations

from pathlib import Path

import pytest

from features.errors import DiskError
from pipelines.operate.space import LEAST, bytes_of_a_job, require_room
from pipelines.workspace import Workspace


def written(path: Path, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(size)


def test_a_job_takes_what_the_last_run_and_two_bundles_took_and_a_fifth_more(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    assert bytes_of_a_job(workspace, "shop") == LEAST
    for run, size in (("20260101T000000Z-shop-aa", 1), ("20260102T000000Z-shop-bb", 100 * 2**20)):
        written(workspace.runs / run / "metrics.json", size)
    written(workspace.runs / "20260103T000000Z-other-cc" / "metrics.json", 2**30)
    written(workspace.bundles("shop") / "run" / "table.bin", 50 * 2**20)
    (workspace.bundles("shop") / "NEWEST").write_text("run")
    assert bytes_of_a_job(workspace, "shop") == int(1.2 * 200 * 2**20)


def test_a_pointer_to_nothing_does_not_keep_a_job_from_starting(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    workspace.bundles("shop").mkdir(parents=True)
    (workspace.bundles("shop") / "NEWEST").write_text("gone")
    assert bytes_of_a_job(workspace, "shop") == LEAST


def test_a_job_without_room_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("features.store.disk.free_bytes", lambda path: LEAST - 1)
    with pytest.raises(DiskError, match="a run of 'shop' with its bundle takes about 67,108,864 bytes"):
        require_room(Workspace(tmp_path), "shop")
