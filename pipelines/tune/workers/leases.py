"""Who is at work on a trial, and until when: a worker that died is noticed, and its trial is not lost.

A worker writes its name and a deadline into the attributes of its trial and moves the deadline on while it lives. On a
database Optuna's heartbeat does the second; a journal file has none.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from features.errors import ConfigError

WORKER, HOST, DEADLINE = "worker", "host", "deadline"
FEWEST_INTERVALS = 5


@dataclass(frozen=True)
class Lease:
    """How long a worker may be silent.

    Args:
        interval: seconds between two signs of life.
        grace: seconds after the last one until its trial is given to another worker; five intervals or more, since a
            machine that swaps may miss some.
    """

    interval: int = 10
    grace: int = 60

    def __post_init__(self) -> None:
        if self.grace < FEWEST_INTERVALS * self.interval:
            raise ConfigError(
                f"lease: a grace of {self.grace} s is less than {FEWEST_INTERVALS} intervals of {self.interval} s: a "
                "worker on a busy machine would lose its trial."
            )


def worker_name() -> str:
    """A name for this process: host, process id, and a random tail, since ids return."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"


def overdue(trials: Sequence[FrozenTrial], lease: Lease, now: float, beats: bool) -> list[FrozenTrial]:
    """Running trials whose worker was silent for too long.

    Args:
        trials: of the study.
        lease: how long is too long.
        now: seconds since 1970.
        beats: whether Optuna's heartbeat watches trials from their start. Then only those are judged that never got as
            far as that.
    """
    found = []
    for trial in trials:
        if trial.state is not TrialState.RUNNING:
            continue
        if WORKER not in trial.user_attrs:
            # Its worker ended between drawing it and signing it.
            started = trial.datetime_start.timestamp() if trial.datetime_start else 0.0
            if started + lease.grace < now:
                found.append(trial)
        elif not beats and float(trial.user_attrs.get(DEADLINE, 0.0)) < now:
            found.append(trial)
    return found


def at_work(trials: Sequence[FrozenTrial], host: str) -> int:
    """Number of workers of a host that have a trial."""
    running = [trial for trial in trials if trial.state is TrialState.RUNNING]
    return len({trial.user_attrs.get(WORKER) for trial in running if trial.user_attrs.get(HOST) == host})


class Renewal:
    """Moves the deadline of one trial on, in a thread, from `start` to `stop`.

    Args:
        storage: of the study.
        trial_id: Optuna's id of the trial.
        lease: interval and grace.
        clock: seconds since 1970.

    Attributes:
        lost: the trial was finished by another worker, who thought this one dead.
    """

    def __init__(
        self,
        storage: optuna.storages.BaseStorage,
        trial_id: int,
        lease: Lease,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.lost = False
        self._storage, self._trial_id, self._lease, self._clock = storage, trial_id, lease, clock
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew_until_ended, name="lease", daemon=True)

    def start(self) -> None:
        """Write the first deadline and go on."""
        self.renew()
        self._thread.start()

    def stop(self) -> None:
        """End the thread. The last deadline stays."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def renew(self) -> None:
        """Write a deadline once."""
        try:
            self._storage.set_trial_user_attr(self._trial_id, DEADLINE, self._clock() + self._lease.grace)
        except UpdateFinishedTrialError:
            self.lost = True
            self._ended.set()

    def _renew_until_ended(self) -> None:
        while not self._ended.wait(self._lease.interval):
            # A disk that is full for a moment ends no lease: the next sign of life may come through. The trial itself
            # tells of one that stays full.
            with suppress(OSError):
                self.renew()
