"""Workers of one study on a real PostgreSQL; skipped, with the reason, where there is none."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from optuna.trial import FrozenTrial, TrialState

from features.errors import LockError, TryAgainError
from pipelines.tune.workers.leases import Lease
from pipelines.tune.workers.standing import PREVIOUS, counted, state_of
from pipelines.tune.workers.storage import SharedStorage
from pipelines.workspace import Workspace
from tests.pipelines.tune.postgres import cluster
from tests.pipelines.tune.stub_worker import worker
from tests.pipelines.tune.workers.test_loop import distinct, ended, start, until


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with cluster() as address:
        yield address


@pytest.fixture
def database(server: str, request: pytest.FixtureRequest) -> str:
    """A fresh database for one test."""
    import psycopg

    name = request.node.originalname[-60:]
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    return f"{server.rpartition('/')[0]}/{name}"


def trials_of(database: str, folder: Path) -> list[FrozenTrial]:
    return worker(database, folder, 1, 0.0, Lease(), []).study.get_trials()


def test_four_workers_on_a_fresh_database_share_the_trials(database: str, tmp_path: Path) -> None:
    """They make tables and study at once."""
    assert ended(*(start(tmp_path, 8, 0.05, database) for _ in range(4))) == [0] * 4
    found = trials_of(database, tmp_path)
    assert [one.state for one in found] == [TrialState.COMPLETE] * 8 and len(distinct(found)) == 8


def test_a_killed_worker_s_trial_is_found_by_optuna_s_heartbeat(database: str, tmp_path: Path) -> None:
    dying = start(tmp_path, 3, 30.0, database)
    number = until(dying, "drew")
    dying.send_signal(signal.SIGKILL)
    dying.communicate()
    assert ended(start(tmp_path, 3, 0.05, database)) == [0]
    found = trials_of(database, tmp_path)
    assert Counter(state_of(one, found) for one in found) == {"complete": 3, "retried": 1}
    assert next(one for one in found if one.user_attrs.get(PREVIOUS) == number).params == found[number].params


def test_a_late_worker_is_told_that_its_trial_was_taken(database: str, tmp_path: Path) -> None:
    """It stands still for longer than the grace, goes on, and finds its trial finished by the other one."""
    late = start(tmp_path, 2, 5.0, database)
    until(late, "drew")
    late.send_signal(signal.SIGSTOP)
    other = start(tmp_path, 2, 0.05, database)
    assert ended(other) == [0]
    late.send_signal(signal.SIGCONT)
    assert ended(late) == [0]
    found = trials_of(database, tmp_path)
    assert Counter(state_of(one, found) for one in found) == {"complete": 2, "retried": 1}


def test_a_lock_that_is_held_for_too_long_is_told(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that was suspended while it drew a trial holds it; its connection lives on."""
    monkeypatch.setattr("pipelines.tune.workers.storage.LONGEST_WAIT", 0.2)
    first, second = (SharedStorage.of(database, "daily", Workspace(tmp_path), Lease()) for _ in "ab")
    with first.lock(), pytest.raises(LockError, match="another worker of 'daily' holds it"), second.lock():
        pass
    with second.lock():
        pass


def test_workers_of_another_study_are_not_kept_waiting(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.tune.workers.storage.LONGEST_WAIT", 0.2)
    daily, weekly = (SharedStorage.of(database, name, Workspace(tmp_path), Lease()) for name in ("daily", "weekly"))
    with daily.lock(), weekly.lock():
        pass


def test_a_database_that_goes_away_is_told(tmp_path: Path) -> None:
    with cluster() as address:
        one = worker(address, tmp_path, 3, 0.0, Lease(), [])
    with pytest.raises(
        TryAgainError, match=r"the storage of study 'stub' cannot be used: .*trials that ended are kept"
    ):
        one.work()


@pytest.mark.slow
def test_four_workers_on_a_fresh_database_twenty_times(server: str, tmp_path: Path) -> None:
    import psycopg

    for repetition in range(20):
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE fresh_{repetition}")
        address = f"{server.rpartition('/')[0]}/fresh_{repetition}"
        assert ended(*(start(tmp_path / str(repetition), 8, 0.01, address) for _ in range(4))) == [0] * 4
        assert [one.state for one in trials_of(address, tmp_path)] == [TrialState.COMPLETE] * 8


@pytest.mark.slow
def test_two_workers_and_twenty_trials_with_one_killed(database: str, tmp_path: Path) -> None:
    killed, other = start(tmp_path, 20, 0.5, database), start(tmp_path, 20, 0.5, database)
    for _ in range(3):
        until(killed, "ended")
    until(killed, "drew")
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert ended(other, start(tmp_path, 20, 0.5, database)) == [0, 0]
    found = trials_of(database, tmp_path)
    assert Counter(state_of(one, found) for one in found) == {"complete": 20, "retried": 1}
    assert len(distinct(counted(found))) == 20
