"""How far a study is: lost trials are tried again once, and count once."""

from __future__ import annotations

import optuna
import pytest
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import TrialState

from features.errors import DataError, LockError, StoreAwayError
from pipelines.tune.workers.standing import (
    ERROR,
    PREVIOUS,
    RETRIES,
    STOPPED,
    Standing,
    counted,
    standing,
    state_after,
    state_of,
    try_again,
)

DROPOUT = {"model.dropout": FloatDistribution(0.0, 0.4)}


def study(*trials: tuple[TrialState, dict[str, object]]) -> optuna.Study:
    found = optuna.create_study()
    for number, (state, attributes) in enumerate(trials):
        value = 1.0 if state is TrialState.COMPLETE else None
        drawn = {} if state is TrialState.WAITING else {"model.dropout": number / 100}
        found.add_trial(
            optuna.create_trial(
                state=state, value=value, user_attrs=attributes, params=drawn, distributions=DROPOUT if drawn else {}
            )
        )
    return found


def of(found: optuna.Study) -> tuple[int, int, int, list[int], int]:
    now = standing(found.trials)
    return now.finished, now.running, now.waiting, [one.number for one in now.again], now.begun


COMPLETE, PRUNED, FAIL = (TrialState.COMPLETE, {}), (TrialState.PRUNED, {}), (TrialState.FAIL, {})
RUNNING, WAITING = (TrialState.RUNNING, {}), (TrialState.WAITING, {})


@pytest.mark.parametrize(
    ("trials", "found"),
    [
        ((), (0, 0, 0, [], 0)),
        ((COMPLETE, PRUNED, RUNNING, WAITING), (2, 1, 1, [], 4)),
        # A worker died: its trial must be tried again, and counts already.
        ((COMPLETE, FAIL), (1, 0, 0, [1], 2)),
        # It is in the queue: one thing, not two.
        ((FAIL, (TrialState.WAITING, {PREVIOUS: 0, RETRIES: 1})), (0, 0, 1, [], 1)),
        ((FAIL, (TrialState.COMPLETE, {PREVIOUS: 0, RETRIES: 1})), (1, 0, 0, [], 1)),
        # It was lost twice: it has failed, and counts.
        ((FAIL, (TrialState.FAIL, {PREVIOUS: 0, RETRIES: 1})), (1, 0, 0, [], 1)),
        # Its settings are to blame: the same would happen again.
        (((TrialState.FAIL, {ERROR: "batch too large"}),), (1, 0, 0, [], 1)),
        # Its worker was asked to end, as often as it likes.
        ((FAIL, (TrialState.FAIL, {PREVIOUS: 0, RETRIES: 1, STOPPED: True})), (0, 0, 0, [1], 1)),
    ],
)
def test_each_distinct_trial_counts_once(
    trials: tuple[tuple[TrialState, dict[str, object]], ...], found: tuple[int, int, int, list[int], int]
) -> None:
    assert of(study(*trials)) == found


def test_a_trial_is_tried_again_with_its_parameters() -> None:
    found = study(
        COMPLETE,
        (TrialState.FAIL, {"first": True, "worker": "a", "deadline": 1.0, "run": "r", "low": 0.1, "noise": 0.2}),
    )
    try_again(found, found.trials[1])
    queued = found.trials[2]
    assert (queued.state, queued.system_attrs["fixed_params"]) == (TrialState.WAITING, {"model.dropout": 0.01})
    # What the trial is stays; who had it does not.
    assert queued.user_attrs == {"first": True, PREVIOUS: 1, RETRIES: 1}
    asked = found.ask()
    assert asked.number == 2 and asked.suggest_float("model.dropout", 0.0, 0.4) == 0.01


def test_a_value_between_the_steps_of_its_range_is_tried_again_as_it_is() -> None:
    """The current settings are the first trial, whatever the steps."""
    found = optuna.create_study()
    found.add_trial(optuna.create_trial(state=TrialState.WAITING, system_attrs={"fixed_params": {"size": 700, "x": 1}}))
    for _ in range(2):
        asked = found.ask()
        with pytest.warns(UserWarning, match="out of range"):
            assert asked.suggest_int("size", 512, 2048, step=512) == 700
        found.tell(asked, state=TrialState.FAIL)
        try_again(found, found.trials[-1])
    # What was lost before all of it was drawn keeps the rest of what it was given.
    assert found.ask().suggest_int("x", 0, 9) == 1
    assert IntDistribution(512, 2048, step=512) == found.trials[0].distributions["size"]


def test_a_stop_is_no_retry() -> None:
    found = study((TrialState.FAIL, {STOPPED: True, RETRIES: 1}))
    try_again(found, found.trials[0])
    assert found.trials[1].user_attrs == {PREVIOUS: 0, RETRIES: 1}


def test_a_queued_trial_that_was_lost_before_it_drew_keeps_what_it_was_given() -> None:
    found = optuna.create_study()
    found.enqueue_trial({"model.dropout": 0.3}, user_attrs={"first": True})
    lost = found.ask()
    found.tell(lost, state=TrialState.FAIL)
    try_again(found, found.trials[0])
    assert found.ask().suggest_float("model.dropout", 0.0, 0.4) == 0.3


def test_states_as_they_are_told() -> None:
    trials = study(
        COMPLETE, PRUNED, FAIL, RUNNING, WAITING, (TrialState.FAIL, {ERROR: "x"}), (TrialState.COMPLETE, {PREVIOUS: 2})
    ).trials
    assert [state_of(one, trials) for one in trials] == [
        "complete", "pruned", "retried", "running", "waiting", "failed", "complete",
    ]  # fmt: skip
    assert [one.number for one in counted(trials)] == [0, 1, 5, 6]


def test_begun_is_all_that_a_study_must_not_start_again() -> None:
    assert Standing(finished=3, running=2, waiting=1, again=()).begun == 6


@pytest.mark.parametrize(
    ("error", "retries", "state"),
    [
        (DataError("these settings"), 0, "failed"),
        (KeyboardInterrupt(), 1, "retried"),  # asked to end: as often as it comes
        (LockError("another builds"), 1, "retried"),
        (StoreAwayError("away"), 1, "retried"),
        (RuntimeError("unexpected"), 0, "retried"),
        (RuntimeError("unexpected"), 1, "failed"),
    ],
)
def test_what_a_trial_becomes_after_an_error(error: BaseException, retries: int, state: str) -> None:
    assert state_after(error, retries) == state
