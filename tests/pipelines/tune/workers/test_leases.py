"""Who is at work until when, by a clock that the test sets."""

from __future__ import annotations

import threading
from datetime import datetime

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from features.errors import ConfigError
from pipelines.tune.workers.leases import DEADLINE, HOST, WORKER, Lease, Renewal, at_work, overdue, worker_name

LEASE = Lease(10, 60)


def trial(
    number: int, state: TrialState = TrialState.RUNNING, started: float = 1000.0, **attributes: object
) -> FrozenTrial:
    value = 1.0 if state is TrialState.COMPLETE else None
    found = optuna.create_trial(state=state, value=value, user_attrs=attributes)
    found.number, found.datetime_start = number, datetime.fromtimestamp(started)
    return found


def numbers(trials: list[FrozenTrial]) -> list[int]:
    return [one.number for one in trials]


@pytest.mark.parametrize(("now", "found"), [(1059.0, []), (1060.0, []), (1060.1, [0])])
def test_a_trial_is_overdue_once_its_deadline_is_past(now: float, found: list[int]) -> None:
    trials = [trial(0, **{WORKER: "a", DEADLINE: 1060.0}), trial(1, **{WORKER: "b", DEADLINE: 2000.0})]
    assert numbers(overdue(trials, LEASE, now, beats=False)) == found


def test_only_running_trials_are_overdue() -> None:
    states = (TrialState.COMPLETE, TrialState.FAIL, TrialState.WAITING)
    trials = [trial(n, state, **{WORKER: "a", DEADLINE: 1.0}) for n, state in enumerate(states)]
    assert overdue(trials, LEASE, 5000.0, beats=False) == []


@pytest.mark.parametrize("beats", [False, True])
@pytest.mark.parametrize(("now", "found"), [(1060.0, []), (1060.1, [0])])
def test_a_trial_that_was_never_signed_is_overdue_a_grace_after_its_start(
    now: float, found: list[int], beats: bool
) -> None:
    assert numbers(overdue([trial(0)], LEASE, now, beats)) == found


def test_what_optunas_heartbeat_watches_is_left_to_it() -> None:
    assert overdue([trial(0, **{WORKER: "a"})], LEASE, 5000.0, beats=True) == []


def test_a_grace_below_five_intervals_is_refused() -> None:
    assert Lease(10, 50).grace == 50
    with pytest.raises(ConfigError, match="a grace of 49 s is less than 5 intervals of 10 s"):
        Lease(10, 49)


def test_each_renewal_moves_the_deadline_on() -> None:
    study = optuna.create_study()
    asked, clock = study.ask(), iter([100.0, 110.0])
    renewal = Renewal(study._storage, asked._trial_id, LEASE, lambda: next(clock))
    renewal.renew()
    assert study.trials[0].user_attrs[DEADLINE] == 160.0
    renewal.renew()
    assert study.trials[0].user_attrs[DEADLINE] == 170.0 and not renewal.lost


def test_a_renewal_notices_that_another_worker_ended_its_trial() -> None:
    study = optuna.create_study()
    asked = study.ask()
    renewal = Renewal(study._storage, asked._trial_id, LEASE)
    renewal.start()
    study.tell(asked, state=TrialState.FAIL)
    renewal.renew()
    renewal.stop()
    assert renewal.lost


def test_a_lease_outlives_a_moment_in_which_nothing_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full at the first sign of life; the second one comes through."""
    study, seen = optuna.create_study(), threading.Event()
    asked = study.ask()
    renewal = Renewal(study._storage, asked._trial_id, LEASE)
    monkeypatch.setattr(renewal._ended, "wait", lambda seconds: seen.is_set())
    tries = iter([OSError(28, "No space left on device"), None])

    def renew() -> None:
        if error := next(tries):
            raise error
        seen.set()

    monkeypatch.setattr(renewal, "renew", renew)
    renewal._renew_until_ended()
    assert seen.is_set()


def test_workers_of_a_host_are_counted_once_each() -> None:
    trials = [
        trial(0, **{WORKER: "a", HOST: "here"}),
        trial(1, **{WORKER: "b", HOST: "here"}),
        trial(2, **{WORKER: "b", HOST: "here"}),
        trial(3, **{WORKER: "c", HOST: "there"}),
        trial(4, TrialState.COMPLETE, **{WORKER: "d", HOST: "here"}),
    ]
    assert at_work(trials, "here") == 2


def test_no_two_workers_have_one_name() -> None:
    assert worker_name() != worker_name()
