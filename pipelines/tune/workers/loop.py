"""The loop of one worker: put lost trials back, take a turn, run a trial, until the study has all of its trials."""

from __future__ import annotations

import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console

from features.errors import LockError, QuadRankError, TryAgainError
from pipelines.tune.workers.leases import overdue
from pipelines.tune.workers.standing import (
    NO_FAULT_OF_IT,
    PREVIOUS,
    STOPPED,
    Standing,
    lost,
    standing,
    state_of,
    try_again,
)
from pipelines.tune.workers.storage import SharedStorage

SECONDS_BETWEEN_LOOKS = 0.5  # at other workers' trials
TOLD = "told"  # attribute of a study: numbers of the trials that were lost for good, as `on_lost` was told
ENDED = "ended"  # attribute of a study: why it has no more trials than it has
Objective = Callable[[optuna.Trial, Callable[[], None]], Any]


class Terminated(KeyboardInterrupt):
    """SIGTERM came: the trial at work ends as failed, and is put back into the queue."""


class _ExplainedError(Exception):
    """A trial's own settings are to blame, and it says so: the worker goes on with the next one."""


@dataclass(frozen=True)
class Worker:
    """One worker's part in the trials of a study.

    Args:
        study: of Optuna.
        shared: its storage and lock.
        wanted: distinct trials that the study has in the end, over all workers; what waits beyond them stays in the
            queue.
        console: where messages are printed.
        sampler: what draws the trial of a number.
        objective: runs a trial; calls its second argument once settings are drawn.
        on_lost: is told the trial and its state where its worker died.
        may_end: whether a study that was ended before it has all of them stays ended.
    """

    study: optuna.Study
    shared: SharedStorage
    wanted: float
    console: Console
    sampler: Callable[[int], optuna.samplers.BaseSampler]
    objective: Objective
    on_lost: Callable[[FrozenTrial, str], None]
    may_end: bool = True

    def work(self, after: Callable[[], None] | None = None) -> None:
        """Run trials until the study has all that are wanted, and all have ended, also those of other workers.

        Args:
            after: called after each trial of this worker.

        Raises:
            Terminated: SIGTERM came in the middle; the trial is in the queue again.
            TryAgainError: the storage was lost, or something that each trial needs is missing for now; the trial is in
                the queue again.
            LockError: likewise, of a feature set that another process builds.
        """
        told = False
        while True:
            with self.shared.reached(), ExitStack() as turn:
                turn.enter_context(self.shared.lock())
                now = self._reconciled()
                full = now.finished + now.running >= self.wanted
                ended = self.may_end and ENDED in self.study.user_attrs
                if full or (ended and not now.waiting):
                    if not now.running:
                        return
                else:
                    self._run_one(turn)
                    turn.close()
                    if after is not None:
                        after()
                    continue
            if not told:
                self.console.print(f"{now.running} trials are with other workers: waiting for them")
                told = True
            time.sleep(SECONDS_BETWEEN_LOOKS)

    def _reconciled(self) -> Standing:
        """Fail the trials of dead workers and put what was lost into the queue. Only while holding the lock."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            optuna.storages.fail_stale_trials(self.study)  # does nothing on a journal file
        trials = self.study.get_trials(deepcopy=False)
        for trial in overdue(trials, self.shared.lease, time.time(), self.shared.beats):
            try:
                self.study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
            except UpdateFinishedTrialError:
                continue  # it ended at the last moment
            self.console.print(
                f"trial {trial.number}: nothing heard of its worker for {self.shared.lease.grace} s", markup=False
            )
        trials = self.study.get_trials(deepcopy=False)
        now = standing(trials)
        for trial in now.again:
            try_again(self.study, trial)
        # Optuna itself may have failed them since, on a database: not only those count that ran a moment ago.
        told = list(self.study.user_attrs.get(TOLD, []))
        over = {*told, *(one.user_attrs.get(PREVIOUS) for one in trials), *(one.number for one in now.again)}
        for_good = [one for one in trials if lost(one) and one.number not in over]
        if now.again or for_good:
            trials = self.study.get_trials(deepcopy=False)
            for trial in (*now.again, *for_good):
                self.on_lost(trial, state_of(trial, trials))
            now = standing(trials)
        if for_good:
            self.study.set_user_attr(TOLD, told + [one.number for one in for_good])
        return now

    def _run_one(self, turn: ExitStack) -> None:
        """Draw and run one trial; the lock of `turn` is given back once it is drawn."""
        number: list[int] = []
        raised: list[Exception] = []
        ended_by: list[BaseException] = []

        def objective(trial: optuna.Trial) -> Any:
            number.append(trial.number)
            if self.shared.beats:
                # Optuna's thread may beat after the trial is signed: a worker that dies in between would be waited for.
                self.study._storage.record_heartbeat(trial._trial_id)
            try:
                return self.objective(trial, turn.close)
            except NO_FAULT_OF_IT as error:
                ended_by.append(error)
                with suppress(UpdateFinishedTrialError):  # another worker has the trial by now
                    trial.set_user_attr(STOPPED, True)
                raise
            except QuadRankError as error:
                raise _ExplainedError from error
            except (UpdateFinishedTrialError, optuna.TrialPruned):
                raise
            except Exception as error:
                raised.append(error)
                raise

        self.study.sampler = self.sampler(len(self.study.get_trials(deepcopy=False)))
        try:
            with warnings.catch_warnings():
                # Of a current setting that lies between the steps of its range.
                warnings.filterwarnings("ignore", message="Fixed parameter .* is out of range")
                self.study.optimize(objective, n_trials=1, catch=(_ExplainedError,))
        except (LockError, TryAgainError):
            raise
        except Exception:
            if ended_by:
                # Optuna cannot fail a trial that another worker has, and raises that instead.
                raise ended_by[0] from None
            if raised or not number or not self._was_taken(number[0]):
                raise
            self.console.print(
                f"trial {number[0]} was given to another worker, which heard nothing of this one for "
                f"{self.shared.lease.grace} s"
            )

    def _was_taken(self, number: int) -> bool:
        """Whether another worker failed the trial of this one in the meantime, and may or may not try it again."""
        return lost(self.study.get_trials(deepcopy=False)[number])


@contextmanager
def ending_cleanly() -> Iterator[None]:
    """Within the block SIGTERM raises `Terminated`; outside the main thread, which gets no signals, nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
