"""What `latest` means, and which runs may be reopened."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from features.errors import ConfigError, LockError
from pipelines.workspace import Workspace, run_lock

FINISHED = ("config.json", "checkpoint.json", "model.safetensors", "metrics.json")
OLD, MIDDLE, NEW = "20260101T100000Z-shop-aaaa", "20260101T110000Z-shop-0000", "20260102T090000Z-shop-5555"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


def make(workspace: Workspace, name: str, files: tuple[str, ...]) -> Path:
    folder = workspace.runs / name
    folder.mkdir(parents=True)
    for file in files:
        (folder / file).touch()
    return folder


def test_latest_is_the_newest_finished_run(workspace: Workspace) -> None:
    for name in (MIDDLE, NEW, OLD):
        make(workspace, name, FINISHED)
    assert workspace.run("latest").name == NEW
    assert workspace.run(OLD).name == OLD


@pytest.mark.parametrize("files", [("config.json",), FINISHED[:2], FINISHED[:3]])
def test_a_run_that_was_not_evaluated_is_not_the_latest(workspace: Workspace, files: tuple[str, ...]) -> None:
    make(workspace, OLD, FINISHED)
    make(workspace, NEW, files)
    assert workspace.run("latest").name == OLD
    assert workspace.unfinished_run("latest").name == NEW
    with pytest.raises(ConfigError, match=f"ended before its evaluation.*quadrank train --resume {NEW}"):
        workspace.run(NEW)


def test_a_trial_is_no_run(workspace: Workspace) -> None:
    make(workspace, OLD, FINISHED)
    make(workspace, f"tune/first/{NEW}", FINISHED[:3])
    assert workspace.run("latest").name == OLD
    for name in (NEW, f"tune/first/{NEW}"):
        with pytest.raises(ConfigError, match=r"a trial of the sweep 'first'.*--model .*tune/first\.best\.yaml"):
            workspace.run(name)
    with pytest.raises(ConfigError, match="no unfinished run"):
        workspace.unfinished_run("latest")


def test_a_finished_run_is_never_reopened(workspace: Workspace) -> None:
    make(workspace, OLD, FINISHED[:2])
    make(workspace, NEW, FINISHED)
    assert workspace.unfinished_run("latest").name == OLD
    with pytest.raises(ConfigError, match=f"{NEW}: finished, and a finished run is never reopened"):
        workspace.unfinished_run(NEW)


def test_the_newest_unfinished_run_is_reopened(workspace: Workspace) -> None:
    for name in (MIDDLE, NEW, OLD):
        make(workspace, name, ("config.json",))
    assert workspace.unfinished_run("latest").name == NEW
    assert workspace.unfinished_run(OLD).name == OLD


def test_what_is_not_there_names_what_is(workspace: Workspace) -> None:
    with pytest.raises(ConfigError, match=r"runs: holds no finished run\. `quadrank train` makes one"):
        workspace.run("latest")
    with pytest.raises(ConfigError, match=r"runs: holds no unfinished run\. Leave out --resume"):
        workspace.unfinished_run("latest")
    make(workspace, OLD, FINISHED)
    make(workspace, NEW, FINISHED[:1])
    with pytest.raises(ConfigError, match=f"Finished runs: {OLD}\\."):
        workspace.run("typo")
    with pytest.raises(ConfigError, match=f"Unfinished runs: {NEW}\\."):
        workspace.unfinished_run("typo")


def test_run_ids_are_of_utc_and_sort_by_time(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Local time would repeat an hour where summer time ends, and differ between machines."""
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        before = time.gmtime()
        run = workspace.new_run("shop")
        after = time.gmtime()
    finally:
        monkeypatch.undo()
        time.tzset()
    found = re.fullmatch(r"(\d{8}T\d{6}Z)-shop-[0-9a-f]{4}", run.name)
    assert found and run.parent == workspace.runs
    moments = [time.strftime("%Y%m%dT%H%M%SZ", moment) for moment in (before, after)]
    assert moments[0] <= found[1] <= moments[1]
    assert workspace.new_trial("first", "shop").parent == workspace.runs / "tune" / "first"


def test_a_lock_waits_as_long_as_it_is_told(workspace: Workspace) -> None:
    with workspace.lock("shop"):
        with pytest.raises(LockError, match=r"shop\.lock: another job on 'shop'"), workspace.lock("shop"):
            raise AssertionError("held twice")
        started = time.monotonic()
        with pytest.raises(LockError), workspace.lock("shop", wait=0.3):
            raise AssertionError("held twice")
        assert time.monotonic() - started >= 0.3
        with workspace.lock("another"):
            pass
    with workspace.lock("shop"):
        pass


def test_one_process_trains_in_a_run_folder(workspace: Workspace) -> None:
    folder = make(workspace, OLD, ("config.json",))
    with run_lock(folder), pytest.raises(LockError, match="another process is training this run"), run_lock(folder):
        raise AssertionError("held twice")
    with run_lock(folder):
        pass
