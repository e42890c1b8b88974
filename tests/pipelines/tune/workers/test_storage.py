"""The storage of a study: which there are, what is said of one that is away, one lock for all workers."""

from __future__ import annotations

import errno
import os
import socket
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import optuna
import pytest

from features.errors import ConfigError, TryAgainError
from pipelines.tune.workers.leases import Lease
from pipelines.tune.workers.storage import SharedStorage
from pipelines.workspace import Workspace


def of(storage: str | None, folder: Path) -> SharedStorage:
    return SharedStorage.of(storage, "daily", Workspace(folder), Lease())


def of_name(study: str, folder: Path) -> SharedStorage:
    return SharedStorage.of(None, study, Workspace(folder), Lease())


def test_a_study_has_a_journal_of_its_own_by_default(tmp_path: Path) -> None:
    found = of(None, tmp_path)
    assert found.journal == tmp_path / "runs" / "tune" / "daily.journal" and not found.beats
    assert of(str(tmp_path / "x.journal"), tmp_path).journal == tmp_path / "x.journal"


@pytest.mark.parametrize("name", ["a/b", "..", ".", "", "/a"])
@pytest.mark.parametrize("storage", [None, "sqlite:///x.db"])
def test_a_study_whose_name_is_no_name_of_a_folder_is_refused(name: str, storage: str | None, tmp_path: Path) -> None:
    """What its trials leave waiting for MLflow would be found by nobody."""
    with pytest.raises(ConfigError, match=rf"study '{name}': its trials lie in a folder of this name"):
        SharedStorage.of(storage, name, Workspace(tmp_path), Lease())


def test_a_name_that_is_too_long_for_a_folder_is_refused(tmp_path: Path) -> None:
    """Else the command would end as one that may be tried again, and never succeed."""
    for name in ("x" * 150, "ä" * 75):
        of_name(name, tmp_path).open()
    for name in ("x" * 151, "ä" * 76):
        with pytest.raises(ConfigError, match=r"It has 15[12] bytes: choose a name of at most 150\."):
            of_name(name, tmp_path)


@pytest.mark.parametrize(
    ("storage", "words"),
    [
        ("mysql://someone:secret@host/db", r"mysql://someone:\*\*\*@host/db: workers share PostgreSQL"),
        ("nothing at all://", "not the address of a database"),
    ],
)
def test_another_database_is_refused_without_its_password(storage: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        of(storage, tmp_path)


def test_a_journal_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    """It cannot be written the next time either."""
    (tmp_path / "file").write_text("")
    shared = of(str(tmp_path / "file" / "x.journal"), tmp_path)
    with pytest.raises(ConfigError, match=r"Name a journal file that can be written with --storage"), shared.lock():
        pass


def test_a_journal_on_a_full_disk_may_be_tried_again(tmp_path: Path) -> None:
    shared = of(str(tmp_path / "x.journal"), tmp_path)
    with (
        pytest.raises(TryAgainError, match=r"x\.journal: the storage of study 'daily'.*No space left"),
        shared.reached(),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "x.journal"))


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_text("a table of something else, " * 100)
    with pytest.raises(
        ConfigError, match=r"x\.db: the storage of study 'daily' cannot be used: file is not a database"
    ):
        of(f"sqlite:///{tmp_path / 'x.db'}", tmp_path).open()
    assert (tmp_path / "x.db").read_text().startswith("a table of something else")


def test_a_database_that_another_process_holds_may_be_tried_again(tmp_path: Path) -> None:
    of(f"sqlite:///{tmp_path / 'x.db'}", tmp_path).open()
    with closing(sqlite3.connect(tmp_path / "x.db")) as database:
        database.execute("BEGIN EXCLUSIVE")
        with pytest.raises(TryAgainError, match="the storage of study 'daily' cannot be used: database is locked"):
            of(f"sqlite:///{tmp_path / 'x.db'}?timeout=0.1", tmp_path).open()


def test_a_sqlite_file_in_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """It stays away however often the command is started: no reason to try again."""
    with pytest.raises(
        ConfigError, match=rf"--storage sqlite:///{tmp_path}/no/x\.db: there is no folder {tmp_path}/no"
    ):
        of(f"sqlite:///{tmp_path / 'no' / 'x.db'}", tmp_path)


def test_a_sqlite_path_that_lacks_a_slash_is_shown_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"there is no folder {Path.cwd()}/no/dir.*sqlite:////no/dir/x\.db"):
        of("sqlite:///no/dir/x.db", tmp_path)


def test_a_folder_as_sqlite_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"--storage sqlite:///{tmp_path}: {tmp_path} is a folder"):
        of(f"sqlite:///{tmp_path}", tmp_path)


@pytest.mark.parametrize("storage", ["sqlite://", "sqlite:///:memory:"])
def test_a_sqlite_database_in_memory_is_refused(storage: str, tmp_path: Path) -> None:
    """The study would be gone with its first worker, and no other would find it."""
    with pytest.raises(ConfigError, match=rf"--storage {storage}: a database in memory ends with the worker"):
        of(storage, tmp_path)


def test_postgresql_without_its_driver_says_what_brings_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "psycopg", None)
    with pytest.raises(ConfigError, match=r"needs psycopg, which is not installed.*quadrank\[tune\]"):
        of("postgresql://host/db", tmp_path)


def test_a_heartbeat_outlives_a_moment_without_the_database(tmp_path: Path) -> None:
    """Optuna beats in a thread that an error would end, and the trial would be another worker's a minute later."""
    storage = of(f"sqlite:///{tmp_path / 'x.db'}", tmp_path).open()
    trial_id = storage.create_new_trial(optuna.create_study(storage=storage)._study_id)
    with closing(sqlite3.connect(tmp_path / "x.db")) as database:
        database.execute("ALTER TABLE trial_heartbeats RENAME TO away")
        storage.record_heartbeat(trial_id)
        database.execute("ALTER TABLE away RENAME TO trial_heartbeats")
        storage.record_heartbeat(trial_id)
        assert database.execute("SELECT COUNT(*) FROM trial_heartbeats").fetchone() == (1,)


def test_a_database_that_is_away_is_told_without_its_password(tmp_path: Path) -> None:
    pytest.importorskip("psycopg", reason="psycopg, the driver of PostgreSQL, is not installed")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        shared = of(f"postgresql://someone:secret@127.0.0.1:{taken.getsockname()[1]}/db", tmp_path)
        with pytest.raises(TryAgainError) as told, shared.lock():
            pass
    assert told.value.exit_code == 75
    assert "someone:***@127.0.0.1" in str(told.value) and "secret" not in str(told.value)
    assert "trials that ended are kept" in str(told.value)


def test_one_worker_at_a_time_has_the_lock(tmp_path: Path) -> None:
    """The second one is let in when the first one leaves, and not before."""
    first, second = of(None, tmp_path), of(None, tmp_path)
    seen: list[str] = []

    def enter() -> None:
        with second.lock():
            seen.append("second")

    waiting = threading.Thread(target=enter)
    with first.lock():
        waiting.start()
        waiting.join(0.3)
        seen.append("first leaves")
    waiting.join(60)
    assert seen == ["first leaves", "second"]
