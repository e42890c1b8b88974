"""A study's journal when the disk is full for a moment, or its writer is killed: its lines stay whole."""

from __future__ import annotations

import os
import resource
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import optuna
import pytest

from features.errors import DataError
from pipelines.tune.workers.leases import DEADLINE, Lease, Renewal
from pipelines.tune.workers.storage import SharedStorage
from pipelines.workspace import Workspace

HALF = b'{"op_code": 4, "wor'


@pytest.fixture
def shared(tmp_path: Path) -> SharedStorage:
    return SharedStorage.of(None, "daily", Workspace(tmp_path), Lease())


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """Files grow to this many bytes and no further: the kernel writes a part of what is longer, then refuses."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def loaded(shared: SharedStorage) -> optuna.Study:
    return optuna.load_study(study_name="daily", storage=shared.open())


def test_half_a_line_at_the_end_of_a_journal_is_cut_off_when_it_is_opened(shared: SharedStorage) -> None:
    optuna.create_study(study_name="daily", storage=shared.open()).enqueue_trial({"x": 1})
    whole = shared.journal.read_bytes()
    shared.journal.write_bytes(whole + HALF)
    loaded(shared)
    assert shared.journal.read_bytes() == whole


def test_a_line_is_on_the_disk_before_its_worker_goes_on(
    shared: SharedStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, synced = optuna.create_study(study_name="daily", storage=shared.open()), list[int]()
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    study.enqueue_trial({"x": 1})
    assert synced[-1:] == [shared.journal.stat().st_size]


def test_a_killed_workers_half_line_is_cut_off_before_another_worker_writes(shared: SharedStorage) -> None:
    study = optuna.create_study(study_name="daily", storage=shared.open())
    with shared.journal.open("ab") as file:
        file.write(HALF)
    study.enqueue_trial({"x": 1})
    assert len(study.trials) == len(loaded(shared).trials) == 1 and HALF not in shared.journal.read_bytes()


def test_a_line_that_the_disk_took_in_part_is_cut_off_at_once(shared: SharedStorage) -> None:
    """Whatever reads the file next, also a dashboard that cuts nothing, finds whole lines."""
    study = optuna.create_study(study_name="daily", storage=shared.open())
    whole = shared.journal.read_bytes()
    with room_for(len(whole) + 20), pytest.raises(OSError, match="too large"):
        study.enqueue_trial({"x": 1})
    assert shared.journal.read_bytes() == whole


def test_a_study_outlives_signs_of_life_that_a_full_disk_refused(shared: SharedStorage) -> None:
    """Two are refused, one comes through; the worker, and one that starts afterwards, read on."""
    study = optuna.create_study(study_name="daily", storage=shared.open())
    asked = study.ask()
    renewal = Renewal(study._storage, asked._trial_id, Lease(), iter([1.0, 2.0, 3.0]).__next__)
    for _ in range(2):
        with room_for(shared.journal.stat().st_size + 20), pytest.raises(OSError, match="too large"):
            renewal.renew()
    renewal.renew()
    asked.set_user_attr("x", 1)
    assert [one.trials[0].user_attrs for one in (study, loaded(shared))] == [{DEADLINE: 63.0, "x": 1}] * 2


def test_a_line_that_was_written_behind_half_a_line_is_named(shared: SharedStorage) -> None:
    optuna.create_study(study_name="daily", storage=shared.open()).enqueue_trial({"x": 1})
    first, *others = shared.journal.read_bytes().splitlines(keepends=True)
    shared.journal.write_bytes(b"".join([first, HALF + others[0], *others]))
    with pytest.raises(DataError, match=r"daily\.journal: line 2 is no entry of a study .* take this line out"):
        loaded(shared)


@pytest.mark.parametrize("content", [b"one line without an end", b"a line\nhalf of one", b'{"value": 1}\n', b"\n\x00"])
def test_a_file_that_is_no_journal_is_refused_and_stays_as_it_is(tmp_path: Path, content: bytes) -> None:
    other = tmp_path / "notes.txt"
    other.write_bytes(content)
    named = SharedStorage.of(str(other), "daily", Workspace(tmp_path), Lease())
    with pytest.raises(DataError, match=r"notes\.txt: no journal of a study.*sqlite:///.*notes\.txt"):
        named.open()
    assert other.read_bytes() == content


def test_a_database_that_is_named_without_its_scheme_stays_whole(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute("create table precious (x)")
        database.executemany("insert into precious values (?)", [(f"row {number}",) for number in range(50)])
        database.commit()
    before = path.read_bytes()
    with pytest.raises(DataError, match=r"study\.db: no journal of a study"):
        SharedStorage.of(str(path), "daily", Workspace(tmp_path), Lease()).open()
    assert path.read_bytes() == before


@pytest.mark.parametrize("half", [b"", b"{", HALF])
def test_a_journal_whose_first_line_was_never_whole_begins_anew(shared: SharedStorage, half: bytes) -> None:
    shared.journal.parent.mkdir(parents=True)
    shared.journal.write_bytes(half)
    optuna.create_study(study_name="daily", storage=shared.open())
    assert len(loaded(shared).trials) == 0 and shared.journal.read_bytes().startswith(b'{"op_code":0')
