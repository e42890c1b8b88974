"""A worker as a process of its own, whose trials only wait: `python -m tests.pipelines.tune.stub_worker …`.

Prints `ready` and begins once a line comes or its input ends. Prints `drew NUMBER` when a trial has its settings, and
`ended NUMBER`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import optuna
from rich.console import Console

from features.errors import QuadRankError
from pipelines.tune.search.samplers import sampler, suggest
from pipelines.tune.search.space import SearchSpace
from pipelines.tune.workers.leases import HOST, WORKER, Lease, Renewal, worker_name
from pipelines.tune.workers.loop import Terminated, Worker, ending_cleanly
from pipelines.tune.workers.storage import SharedStorage
from pipelines.workspace import Workspace

SEARCH = SearchSpace.model_validate(
    {"space": {"model.dropout": {"low": 0.0, "high": 0.4}, "model.layers": {"low": 1, "high": 9}}, "startup_trials": 3}
)


def worker(
    storage: str | None, folder: Path, wanted: int, seconds: float, lease: Lease, lost: list[tuple[int, str]]
) -> Worker:
    """A worker of the study `stub` of a store, which is made where it is new."""
    shared = SharedStorage.of(storage, "stub", Workspace(folder), lease)
    with shared.lock():
        study = optuna.create_study(study_name="stub", storage=shared.open(), direction="maximize", load_if_exists=True)
    name = worker_name()

    def objective(trial: optuna.Trial, drawn: Callable[[], None]) -> float:
        chosen = suggest(SEARCH, trial, {})
        trial.set_user_attr(WORKER, name)
        trial.set_user_attr(HOST, "here")
        renewal = None if shared.beats else Renewal(study._storage, trial._trial_id, lease)
        if renewal is not None:
            renewal.start()
        drawn()
        print(f"drew {trial.number}", flush=True)
        try:
            time.sleep(seconds)
        finally:
            if renewal is not None:
                renewal.stop()
        print(f"ended {trial.number}", flush=True)
        return -float(chosen["model.dropout"])

    def on_lost(trial: optuna.trial.FrozenTrial, state: str) -> None:
        lost.append((trial.number, state))

    console = Console(file=sys.stderr)
    return Worker(study, shared, wanted, console, lambda number: sampler(SEARCH, number, {}), objective, on_lost)


def main(storage: str, folder: str, wanted: str, seconds: str, interval: str, grace: str) -> int:
    """Work until the study has its trials; returns the exit code."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    lease = Lease(int(interval), int(grace))
    print("ready", flush=True)
    sys.stdin.readline()
    try:
        with ending_cleanly():
            worker(storage or None, Path(folder), int(wanted), float(seconds), lease, []).work()
    except Terminated:
        return 75
    except QuadRankError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
