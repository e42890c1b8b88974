"""Workers of one study, as real processes on a journal file: none of their trials is lost, none is run twice."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from optuna.storages._heartbeat import HeartbeatThread
from optuna.trial import FrozenTrial, TrialState

from features.errors import ConfigError, LockError, QuadRankError, StoreAwayError
from pipelines.tune.workers.leases import DEADLINE, WORKER, Lease
from pipelines.tune.workers.loop import ENDED, Terminated, Worker
from pipelines.tune.workers.standing import ERROR, PREVIOUS, RETRIES, counted, state_of
from tests.pipelines.cli.test_commands import ROOT
from tests.pipelines.tune.stub_worker import worker

INTERVAL, GRACE = 1, 5


def start(
    folder: Path,
    wanted: int,
    seconds: float,
    storage: str = "",
    begins: int = subprocess.DEVNULL,
    grace: int = GRACE,
) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.pipelines.tune.stub_worker", storage, str(folder), str(wanted),
               str(seconds), str(INTERVAL), str(grace)]  # fmt: skip
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, stdin=begins, stdout=pipe, stderr=pipe, text=True)


def ended(*processes: subprocess.Popen[str]) -> list[int]:
    told = [process.communicate(timeout=240) for process in processes]
    assert all("Traceback" not in error for _, error in told), told
    return [process.returncode for process in processes]


def until(process: subprocess.Popen[str], word: str) -> int:
    """The number of the trial of the first line that begins so."""
    assert process.stdout is not None
    return next(int(line.split()[1]) for line in process.stdout if line.startswith(word))


def trials_of(folder: Path) -> list[FrozenTrial]:
    return worker(None, folder, 1, 0.0, Lease(), []).study.get_trials()


def distinct(trials: list[FrozenTrial]) -> set[tuple[object, ...]]:
    return {tuple(sorted(one.params.items())) for one in trials}


def test_trials_are_the_studys_total_over_all_starts(tmp_path: Path) -> None:
    worker(None, tmp_path, 2, 0.0, Lease(), []).work()
    worker(None, tmp_path, 5, 0.0, Lease(), []).work()
    worker(None, tmp_path, 5, 0.0, Lease(), []).work()
    found = trials_of(tmp_path)
    assert [one.state for one in found] == [TrialState.COMPLETE] * 5 and len(distinct(found)) == 5


def test_a_killed_worker_s_trial_is_run_by_another_one(tmp_path: Path) -> None:
    """SIGKILL in the middle of a trial; the other worker waits for the lease to run out and takes it over."""
    dying = start(tmp_path, 6, 30.0)
    number = until(dying, "drew")
    dying.send_signal(signal.SIGKILL)
    dying.wait()
    others = [start(tmp_path, 6, 0.1) for _ in range(2)]
    assert ended(*others) == [0, 0]
    dying.communicate()
    found = trials_of(tmp_path)
    assert Counter(state_of(one, found) for one in found) == {"complete": 6, "retried": 1}
    again = next(one for one in found if one.user_attrs.get(PREVIOUS) == number)
    assert again.params == found[number].params and again.user_attrs[RETRIES] == 1
    assert len(distinct(counted(found))) == 6


def test_a_worker_that_is_asked_to_end_leaves_its_trial_in_the_queue(tmp_path: Path) -> None:
    stopped = start(tmp_path, 3, 30.0)
    number = until(stopped, "drew")
    stopped.send_signal(signal.SIGTERM)
    assert ended(stopped) == [75]
    assert TrialState.RUNNING not in {one.state for one in trials_of(tmp_path)}
    worker(None, tmp_path, 3, 0.0, Lease(), []).work()
    found = trials_of(tmp_path)
    assert Counter(state_of(one, found) for one in found) == {"complete": 3, "retried": 1}
    assert next(one for one in found if one.user_attrs.get(PREVIOUS) == number).user_attrs[RETRIES] == 0


def test_a_suspended_worker_finds_its_trial_taken_and_goes_on(tmp_path: Path) -> None:
    """It stands still for longer than the grace; another worker has done its trial when it wakes."""
    late = start(tmp_path, 2, 5.0)
    number = until(late, "drew")
    late.send_signal(signal.SIGSTOP)
    assert ended(start(tmp_path, 2, 0.05)) == [0]
    late.send_signal(signal.SIGCONT)
    assert ended(late) == [0]
    found = trials_of(tmp_path)
    assert Counter(state_of(one, found) for one in found) == {"complete": 2, "retried": 1}
    assert state_of(found[number], found) == "retried"


def test_a_signal_before_the_training_is_no_loss_either(tmp_path: Path) -> None:
    one = worker(None, tmp_path, 2, 0.0, Lease(), [])

    def stopped(trial, drawn):
        trial.suggest_float("model.dropout", 0.0, 0.4)
        raise Terminated

    object.__setattr__(one, "objective", stopped)
    with pytest.raises(Terminated):
        one.work()
    worker(None, tmp_path, 2, 0.0, Lease(), []).work()
    found = trials_of(tmp_path)
    assert Counter(state_of(trial, found) for trial in found) == {"complete": 2, "retried": 1}
    assert [trial.user_attrs.get(RETRIES) for trial in found] == [None, 0, None]


def test_who_was_lost_is_told_once(tmp_path: Path) -> None:
    first = worker(None, tmp_path, 2, 0.0, Lease(), [])
    for state, attributes in ((TrialState.FAIL, {}), (TrialState.FAIL, {RETRIES: 1}), (TrialState.FAIL, {ERROR: "x"})):
        first.study.add_trial(optuna.create_trial(state=state, user_attrs=attributes))
    lost: list[tuple[int, str]] = []
    for wanted in (5, 6):
        worker(None, tmp_path, wanted, 0.0, Lease(), lost).work()
    assert lost == [(0, "retried"), (1, "failed")]


def test_an_explained_failure_counts_and_the_worker_goes_on(tmp_path: Path) -> None:
    one = worker(None, tmp_path, 2, 0.0, Lease(), [])
    tried = one.objective

    def failing(trial, drawn):
        value = tried(trial, drawn)
        if trial.number == 0:
            trial.set_user_attr(ERROR, "no such thing")
            raise ConfigError("no such thing")
        return value

    object.__setattr__(one, "objective", failing)
    one.work()
    found = trials_of(tmp_path)
    assert [state_of(trial, found) for trial in found] == ["failed", "complete"]


def overtake(late: Worker, meanwhile: Callable[[], None]) -> None:
    """Let the worker run, and something happen to its trial 0 before that ends."""
    tried = late.objective

    def overtaken(trial: optuna.Trial, drawn: Callable[[], None]) -> Any:
        value = tried(trial, drawn)
        if trial.number == 0:
            meanwhile()
        return value

    object.__setattr__(late, "objective", overtaken)
    late.work()


def test_a_late_worker_does_not_undo_what_another_one_did(tmp_path: Path) -> None:
    """It was silent for too long: its trial was failed and queued again while it still worked on it."""
    late, other = (worker(None, tmp_path, 1, 0.0, Lease(), []) for _ in range(2))

    def meanwhile() -> None:
        other.study.tell(0, state=TrialState.FAIL)
        other.work()

    overtake(late, meanwhile)
    found = trials_of(tmp_path)
    assert [state_of(trial, found) for trial in found] == ["retried", "complete"]


def test_a_late_worker_of_a_trial_that_was_lost_for_good_goes_on(tmp_path: Path) -> None:
    """Its trial was lost once before: nobody tries it again, so no other trial says that it was taken."""
    late = worker(None, tmp_path, 2, 0.0, Lease(), [])
    late.study.add_trial(optuna.create_trial(state=TrialState.WAITING, user_attrs={RETRIES: 1}))
    other = worker(None, tmp_path, 2, 0.0, Lease(), [])
    overtake(late, lambda: other.study.tell(0, state=TrialState.FAIL))
    found = trials_of(tmp_path)
    assert [state_of(trial, found) for trial in found] == ["failed", "complete"]


def test_a_late_worker_does_not_stumble_before_its_trial_is_in_the_queue_again(tmp_path: Path) -> None:
    """The other worker has failed the trial, and not yet queued it; pruning it comes too late as well."""
    late, other = (worker(None, tmp_path, 1, 0.0, Lease(), []) for _ in range(2))

    def meanwhile() -> None:
        other.study.tell(0, state=TrialState.FAIL)
        raise optuna.TrialPruned

    overtake(late, meanwhile)
    found = trials_of(tmp_path)
    assert [state_of(trial, found) for trial in found] == ["retried", "complete"]


@pytest.mark.parametrize("end", [Terminated(), KeyboardInterrupt(), StoreAwayError("MLflow is away")])
def test_a_late_worker_that_is_asked_to_end_ends(tmp_path: Path, end: BaseException) -> None:
    """Its trial is another worker's by now, which is no reason to draw another one."""
    late, other = (worker(None, tmp_path, 2, 0.0, Lease(), []) for _ in range(2))

    def meanwhile() -> None:
        other.study.tell(0, state=TrialState.FAIL)
        raise end

    with pytest.raises(type(end)):
        overtake(late, meanwhile)
    assert [trial.state for trial in trials_of(tmp_path)] == [TrialState.FAIL]


@pytest.mark.parametrize("error", [StoreAwayError("MLflow is away"), LockError("still being built")])
def test_what_no_trial_can_do_without_ends_the_worker_and_costs_no_attempt(
    error: QuadRankError, tmp_path: Path
) -> None:
    one = worker(None, tmp_path, 2, 0.0, Lease(), [])
    tried = one.objective

    def missing(trial, drawn):
        tried(trial, drawn)
        raise error

    object.__setattr__(one, "objective", missing)
    for _ in range(3):
        with pytest.raises(type(error), match=str(error)):
            one.work()
    worker(None, tmp_path, 2, 0.0, Lease(), []).work()
    found = trials_of(tmp_path)
    assert Counter(state_of(trial, found) for trial in found) == {"retried": 3, "complete": 2}


def test_what_waits_beyond_the_wanted_trials_stays_in_the_queue(tmp_path: Path) -> None:
    one = worker(None, tmp_path, 2, 0.0, Lease(), [])
    for dropout in (0.1, 0.2, 0.3):
        one.study.enqueue_trial({"model.dropout": dropout})
    one.work()
    assert [trial.state.name for trial in trials_of(tmp_path)] == ["COMPLETE", "COMPLETE", "WAITING"]


def test_a_trial_that_is_lost_for_good_is_told(tmp_path: Path) -> None:
    """Its run in MLflow would stand there as running for ever."""
    first = worker(None, tmp_path, 2, 0.0, Lease(), [])
    attributes = {WORKER: "dead", DEADLINE: 0.0, RETRIES: 1}
    first.study.add_trial(optuna.create_trial(state=TrialState.RUNNING, user_attrs=attributes))
    lost: list[tuple[int, str]] = []
    worker(None, tmp_path, 2, 0.0, Lease(), lost).work()
    assert lost == [(0, "failed")]


def test_a_failure_that_nobody_explained_ends_the_worker(tmp_path: Path) -> None:
    broken = worker(None, tmp_path, 1, 0.0, Lease(), [])

    def failing(trial, drawn):
        raise RuntimeError("unexpected")

    object.__setattr__(broken, "objective", failing)
    with pytest.raises(RuntimeError, match="unexpected"):
        broken.work()


def test_a_worker_that_died_before_optuna_s_first_heartbeat_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Optuna beats in a thread, which may come later than the signature: without a beat nobody would look for it."""
    storage, lost = f"sqlite:///{tmp_path / 'stub.db'}", list[tuple[int, str]]()
    dying = worker(storage, tmp_path, 1, 0.0, Lease(1, 5), [])
    tried = dying.objective

    def killed(trial: optuna.Trial, drawn: Callable[[], None]) -> Any:
        tried(trial, drawn)
        raise SystemExit

    object.__setattr__(dying, "objective", killed)
    with monkeypatch.context() as patch:
        patch.setattr(HeartbeatThread, "start", lambda self: None)
        patch.setattr(HeartbeatThread, "join", lambda self: None)
        with pytest.raises(SystemExit):
            dying.work()
    with closing(sqlite3.connect(tmp_path / "stub.db")) as connection, connection:
        connection.execute("UPDATE trial_heartbeats SET heartbeat = '2020-01-01 00:00:00'")
    clock = SimpleNamespace(time=time.time, sleep=lambda seconds: pytest.fail("it waits for the dead"))
    monkeypatch.setattr("pipelines.tune.workers.loop.time", clock)
    other = worker(storage, tmp_path, 1, 0.0, Lease(1, 5), lost)
    other.work()
    found = other.study.get_trials()
    assert [state_of(trial, found) for trial in found] == ["retried", "complete"]
    assert lost == [(0, "retried")]


def test_an_ended_study_gets_no_new_trials(tmp_path: Path) -> None:
    one = worker(None, tmp_path, 1, 0.0, Lease(), [])
    one.work()
    one.study.set_user_attr(ENDED, "noise")
    worker(None, tmp_path, 9, 0.0, Lease(), []).work()
    assert len(trials_of(tmp_path)) == 1


def test_a_study_that_was_ended_goes_on_for_a_worker_that_does_not_end_by_that_rule(tmp_path: Path) -> None:
    one = worker(None, tmp_path, 1, 0.0, Lease(), [])
    one.work()
    one.study.set_user_attr(ENDED, "noise")
    replace(worker(None, tmp_path, 3, 0.0, Lease(), []), may_end=False).work()
    assert len(trials_of(tmp_path)) == 3


def test_four_workers_on_a_fresh_store_share_the_trials(tmp_path: Path) -> None:
    workers = [start(tmp_path, 8, 0.5, begins=subprocess.PIPE, grace=120) for _ in range(4)]
    for one in workers:
        assert one.stdout is not None and one.stdout.readline() == "ready\n"
    for one in workers:  # together: on a busy machine the first one to start would have done all of them
        assert one.stdin is not None
        one.stdin.write("\n")
        one.stdin.flush()
    assert ended(*workers) == [0] * 4
    found = trials_of(tmp_path)
    assert [one.state for one in found] == [TrialState.COMPLETE] * 8
    assert len(distinct(found)) == 8 and len({one.user_attrs[WORKER] for one in found}) > 1


@pytest.mark.slow
def test_four_workers_on_a_fresh_store_twenty_times(tmp_path: Path) -> None:
    for repetition in range(20):
        folder = tmp_path / str(repetition)
        assert ended(*(start(folder, 8, 0.01) for _ in range(4))) == [0] * 4
        assert [one.state for one in trials_of(folder)] == [TrialState.COMPLETE] * 8


@pytest.mark.slow
def test_two_workers_and_twenty_trials_with_one_killed(tmp_path: Path) -> None:
    killed, other = start(tmp_path, 20, 0.5), start(tmp_path, 20, 0.5)
    for _ in range(3):
        until(killed, "ended")
    until(killed, "drew")
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    again = start(tmp_path, 20, 0.5)
    assert ended(other, again) == [0, 0]
    killed.communicate()
    found = trials_of(tmp_path)
    assert Counter(state_of(one, found) for one in found) == {"complete": 20, "retried": 1}
    assert len(distinct(counted(found))) == 20
