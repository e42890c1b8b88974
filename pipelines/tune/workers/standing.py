"""How far a study is: which of its trials count, which wait, and which must be tried again.

A trial that another worker takes over is a new trial of Optuna with the same parameters; both are one attempt at one
thing, and count once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from features.errors import LockError, QuadRankError, TryAgainError

# Attributes of a trial.
ERROR = "error"  # why it failed, where its settings are to blame: it is not tried again
STOPPED = "stopped"  # its worker was asked to end: not the trial's fault
PREVIOUS = "previous"  # number of the trial that it tries again
RETRIES = "retries"  # how often its parameters were lost before
MOST_RETRIES = 1
NO_FAULT_OF_IT = (KeyboardInterrupt, LockError, TryAgainError)  # what ends a trial that is then tried again, always
# Attributes that belong to one attempt, and not to the next one.
OF_AN_ATTEMPT = (
    "worker", "host", "deadline", "run", "rows", "seconds", "peak_mib", "threads", "low", "high", "noise", "same_as",
    ERROR, STOPPED,
)  # fmt: skip


@dataclass(frozen=True)
class Standing:
    """How far a study is.

    Args:
        finished: attempts that count: complete, pruned, failed for good.
        running: trials that a worker has.
        waiting: trials that are in the queue.
        again: trials that were lost and must be put into the queue.
    """

    finished: int
    running: int
    waiting: int
    again: tuple[FrozenTrial, ...]

    @property
    def begun(self) -> int:
        """Distinct trials so far, whatever became of them."""
        return self.finished + self.running + self.waiting + len(self.again)


def standing(trials: Sequence[FrozenTrial]) -> Standing:
    """How far a study with these trials is."""
    followed = {trial.user_attrs[PREVIOUS] for trial in trials if PREVIOUS in trial.user_attrs}
    finished = running = waiting = 0
    again = []
    for trial in trials:
        if trial.state is TrialState.RUNNING:
            running += 1
        elif trial.state is TrialState.WAITING:
            waiting += 1
        elif trial.number in followed:
            continue
        elif lost(trial) and may_go_again(trial):
            again.append(trial)
        else:
            finished += 1
    return Standing(finished, running, waiting, tuple(again))


def lost(trial: FrozenTrial) -> bool:
    """Whether it ended without a result and without an explained error: its worker died or was stopped."""
    return trial.state is TrialState.FAIL and ERROR not in trial.user_attrs


def may_go_again(trial: FrozenTrial) -> bool:
    """Whether a lost trial is tried again: once, or always where its worker was only asked to end."""
    return bool(trial.user_attrs.get(STOPPED)) or int(trial.user_attrs.get(RETRIES, 0)) < MOST_RETRIES


def counted(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The trials that count, each distinct one once, by number."""
    followed = {trial.user_attrs[PREVIOUS] for trial in trials if PREVIOUS in trial.user_attrs}
    ended = [trial for trial in trials if trial.state.is_finished() and trial.number not in followed]
    return [trial for trial in ended if not (lost(trial) and may_go_again(trial))]


def state_of(trial: FrozenTrial, trials: Sequence[FrozenTrial]) -> str:
    """`complete`, `pruned`, `failed`, `retried` (another trial goes on with its parameters), `running`, `waiting`."""
    if any(one.user_attrs.get(PREVIOUS) == trial.number for one in trials):
        return "retried"
    return "failed" if trial.state is TrialState.FAIL else trial.state.name.lower()


def state_after(error: BaseException, retries: int) -> str:
    """What `state_of` will say of a trial that this error ended: `failed`, or `retried`.

    Args:
        error: raised while it was trained.
        retries: how often its parameters were lost before.
    """
    if isinstance(error, NO_FAULT_OF_IT):
        return "retried"
    return "failed" if isinstance(error, QuadRankError) or retries >= MOST_RETRIES else "retried"


def try_again(study: optuna.Study, trial: FrozenTrial) -> None:
    """Put a lost trial into the queue: the same parameters, and what was given to it beyond those that it had.

    They are given, and not drawn: Optuna would refuse a current value between the steps of its range as a drawn one.
    """
    kept = {name: value for name, value in trial.user_attrs.items() if name not in OF_AN_ATTEMPT}
    given: dict[str, Any] = trial.system_attrs.get("fixed_params", {})
    retries = int(trial.user_attrs.get(RETRIES, 0)) + (0 if trial.user_attrs.get(STOPPED) else 1)
    study.enqueue_trial({**given, **trial.params}, user_attrs={**kept, PREVIOUS: trial.number, RETRIES: retries})
