"""Whole sweeps of two workers, read in a real `mlflow server` over HTTP whose store is a real PostgreSQL."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest

from ctr.reporting.mlflow_store import MlflowStore
from features.simulator.simulate import simulate
from pipelines.tune.workers.leases import WORKER, Lease
from pipelines.tune.workers.standing import counted, state_of
from pipelines.tune.workers.storage import SharedStorage
from pipelines.workspace import Workspace
from tests.pipelines.cli.test_commands import ROOT
from tests.pipelines.tune.postgres import cluster
from tests.pipelines.tune.sweeping import DROPOUT, LR, RATE, TINY

pytestmark = pytest.mark.slow
TRIALS = 20


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    with cluster() as address:
        import psycopg

        with psycopg.connect(address, autocommit=True) as connection:
            connection.execute("CREATE DATABASE mlflow")
        yield address


@pytest.fixture(scope="module")
def tracking(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a tracking server."""
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    store = database.replace("postgresql://", "postgresql+psycopg://").rpartition("/")[0] + "/mlflow"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
               "--backend-store-uri", store, "--artifacts-destination", str(folder / "artifacts")]  # fmt: skip
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, start_new_session=True)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{address}/health", timeout=1)
                break
            except OSError:
                assert server.poll() is None, (folder / "log").read_text()
                time.sleep(0.5)
        # A busy machine answers the first calls of a fresh server later than a command waits for its first contact.
        for call in ("experiments/search?max_results=1", "registered-models/search?max_results=1"):
            urllib.request.urlopen(f"{address}/api/2.0/mlflow/{call}", timeout=120).close()
        yield address
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("raw") / "raw"
    simulate(folder, rows=6_000, users=150, items=100, seed=1)
    return folder


def kill_in_a_trial(process: subprocess.Popen[str], study: str, shared: SharedStorage) -> None:
    """SIGKILL a worker while one of its trials runs: it is held still to be sure of that."""
    assert process.stderr is not None
    told = []
    for line in process.stderr:
        told.append(line)
        if not line.startswith("training lr"):
            continue
        process.send_signal(signal.SIGSTOP)
        trials = optuna.load_study(study_name=study, storage=shared.open()).get_trials()
        running = [one for one in trials if one.state is optuna.trial.TrialState.RUNNING]
        if any(f"-{process.pid}-" in one.user_attrs.get(WORKER, "") for one in running):
            break
        process.send_signal(signal.SIGCONT)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, told


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("storage", ["journal", "postgresql"])
def test_two_workers_one_of_them_killed_and_started_again(
    storage: str, database: str, tracking: str, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every trial is trained once, none is left running, and MLflow shows one study with each trial in its state."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking)
    shape = {"startup_trials": 3, "schedule": "none", "space": RATE | DROPOUT}
    (tmp_path / "space.json").write_text(json.dumps(shape))
    command = [sys.executable, "-m", "pipelines", "tune", "--data", str(ROOT / "conf/data/simulated.yaml"),
               "--root", str(raw), "--work", str(tmp_path), "--model", str(LR), "--study", storage,
               "--trials", str(TRIALS), "--space", str(tmp_path / "space.json"), "--json"]  # fmt: skip
    command += [part for one in TINY for part in ("--set", one)]
    command += ["--storage", database] if storage == "postgresql" else []

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    shared = SharedStorage.of(database if storage == "postgresql" else None, storage, Workspace(tmp_path), Lease())
    killed, other = start(), start()
    kill_in_a_trial(killed, storage, shared)
    again = start()
    ended = [process.communicate(timeout=1500) for process in (other, again)]
    assert [other.returncode, again.returncode] == [0, 0], ended
    trials = optuna.load_study(study_name=storage, storage=shared.open()).get_trials()
    states = {one.number: state_of(one, trials) for one in trials}
    assert Counter(states.values()) == {"complete": TRIALS, "retried": 1}
    assert len({tuple(sorted(one.params.items())) for one in counted(trials)}) == TRIALS
    summaries = [json.loads(out.splitlines()[-1]) for out, _ in ended]
    assert summaries[0]["run_id"] == summaries[1]["run_id"] and summaries[0]["trials"] == {"complete": TRIALS}
    client = MlflowStore(tmp_path).client
    experiment = client.get_run(summaries[0]["run_id"]).info.experiment_id
    runs = client.search_runs([experiment], f"tags.study = '{storage}'")
    parents = [one for one in runs if "mlflow.parentRunId" not in one.data.tags]
    assert [one.info.run_id for one in parents] == [summaries[0]["run_id"]]
    children = {int(one.data.tags["trial"]): one for one in runs if "mlflow.parentRunId" in one.data.tags}
    assert {number: one.data.tags["trial_state"] for number, one in children.items()} == states
    assert "RUNNING" not in {one.info.status for one in runs}
