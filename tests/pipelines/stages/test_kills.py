"""Real processes, killed at random instants or told to stop: the same command goes on, readers see whole states."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from ctr.reporting.mlflow_store import MlflowStore
from ctr.serving.bundle import open_bundle
from features.store.feature_set import FeatureSet
from pipelines.cli.commands import main
from pipelines.workspace import Workspace

ROOT = Path(__file__).parents[3]
KILLS = 20
# 38 steps an epoch; a checkpoint every fifth step, and two evaluations an epoch.
JOB = ["--data", "conf/data/simulated.yaml", "--model", "conf/model/lr.yaml",
       *(word for setting in ("train.epochs=6", "train.batch_size=128", "train.evaluations_per_epoch=2",
                              "train.patience=0", "train.checkpoint.steps=5")
         for word in ("--set", setting))]  # fmt: skip

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("raw")
    with pytest.raises(SystemExit):
        main(["simulate", "--out", str(out), "--rows", "6000", "--users", "150", "--items", "100"])
    return out


def started(raw: Path, work: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    command = [sys.executable, "-m", "pipelines", "run", *JOB, "--root", str(raw), "--work", str(work), "--json"]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True)


def ended(process: subprocess.Popen[str]) -> tuple[int, dict[str, Any], str]:
    """Exit code, JSON line and log of a process."""
    out, log = process.communicate(timeout=600)
    return process.returncode, json.loads(out.strip().splitlines()[-1]), log


def wait_for(process: subprocess.Popen[str], words: str) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if words in line:
            return


@pytest.fixture(scope="module")
def whole(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], float]:
    """The JSON line of a job that nothing interrupts, and the seconds from its first stage to its end."""
    process = started(raw, tmp_path_factory.mktemp("whole"))
    wait_for(process, "features:")
    began = time.monotonic()
    code, result, log = ended(process)
    assert code in (0, 6), log
    return result, time.monotonic() - began


def in_mlflow(work: Path) -> list[str]:
    """The state of each MLflow run of a workspace."""
    client = MlflowStore(work).client
    return [run.info.status for run in client.search_runs([one.experiment_id for one in client.search_experiments()])]


class Reader(threading.Thread):
    """Opens what every pointer of a workspace names, again and again, and verifies each file of it."""

    def __init__(self, work: Path) -> None:
        super().__init__(daemon=True)
        self.work, self.seen, self.broken = work, 0, [""][:0]
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.wait(0.02):
            try:
                if (self.work / "feature_sets/simulated/CURRENT").exists():
                    FeatureSet.open(self.work / "feature_sets/simulated").verify()
                    self.seen += 1
                for pointer in ("NEWEST", "CURRENT"):
                    if (self.work / "bundles/simulated" / pointer).exists():
                        open_bundle(self.work / "bundles/simulated" / pointer)
                        self.seen += 1
            except Exception as error:
                self.broken.append(str(error))

    def end(self) -> None:
        self._ended.set()
        self.join()


def test_a_job_goes_on_after_a_kill_at_any_instant(raw, whole, tmp_path):
    expected, seconds = whole
    draw, kills, jobs = random.Random(15), 0, 0
    while kills < KILLS:
        work = tmp_path / f"work-{jobs}"
        jobs += 1
        reader = Reader(work)
        reader.start()
        result: dict[str, Any] | None = None
        while result is None:
            process = started(raw, work)
            if kills < KILLS:
                wait_for(process, "features:")
                time.sleep(draw.uniform(0, seconds))
                if process.poll() is None:
                    process.send_signal(signal.SIGKILL)
                    process.communicate()
                    kills += 1
                    continue
            code, result, log = ended(process)
            assert code == expected["exit_code"], log
        reader.end()
        assert reader.broken == [] and reader.seen > 0
        assert result["metrics"]["test"]["auc"] == pytest.approx(expected["metrics"]["test"]["auc"], abs=1e-6)
        found = [path.name for path in Workspace(work).runs.glob("*/metrics.json")]
        assert len(found) == 1
        assert in_mlflow(work) == ["FINISHED"]


def test_sigterm_ends_a_training_with_75_and_the_same_command_goes_on(raw, whole, tmp_path):
    process = started(raw, tmp_path)
    wait_for(process, "training lr")
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("runs/*/checkpoint.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    asked = time.monotonic()
    process.send_signal(signal.SIGTERM)
    code, result, log = ended(process)
    assert (code, result["exit_code"], result["status"]) == (75, 75, "error"), log
    assert result["error"] == "stopped. The same command goes on where it stood"
    assert time.monotonic() - asked < 60
    code, result, log = ended(started(raw, tmp_path))
    assert code == whole[0]["exit_code"], log
    assert "train: run, unfinished: resumes from step " in log
    assert result["metrics"]["test"]["auc"] == pytest.approx(whole[0]["metrics"]["test"]["auc"], abs=1e-6)
    assert len(list(Workspace(tmp_path).runs.iterdir())) == 1
