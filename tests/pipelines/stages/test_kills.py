"""Real processes, killed at random instants or told to stop: the same command goes on, readers see whole states."""

from __future__ import annotations

import json
import random
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ctr.reporting.mlflow_registry import Registry
from ctr.reporting.mlflow_store import MlflowStore
from ctr.serving.bundle import open_bundle
from ctr.training.checkpoint import saved_state
from features.store.feature_set import FeatureSet
from pipelines.cli.commands import main
from pipelines.stages.record import JobRecord
from pipelines.workspace import Workspace
from tests.pipelines.stages.killed_at import AIMS, Quadrank

Begin = Callable[..., Quadrank]
KILLS = 20 - len(AIMS)  # at random instants; the others come inside a write
# 38 steps an epoch; a checkpoint every fifth step, and two evaluations an epoch.
JOB = ["--data", "conf/data/simulated.yaml", "--model", "conf/model/lr.yaml",
       *(word for setting in ("train.epochs=3", "train.batch_size=128", "train.evaluations_per_epoch=2",
                              "train.patience=0", "train.checkpoint.steps=5")
         for word in ("--set", setting))]  # fmt: skip
SELDOM = ["--set", "train.checkpoint.steps=0"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("raw")
    with pytest.raises(SystemExit):
        main(["simulate", "--out", str(out), "--rows", "6000", "--users", "150", "--items", "100"])
    return out


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Of the process that others are forked from: sums of several threads differ in their last digits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield


@pytest.fixture(scope="module")
def begin(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Begin:
    """Begins a job in a workspace as a process of its own, which with `write` is killed inside that."""

    def process(work: Path, *settings: str, write: str | None = None) -> Quadrank:
        words = ["run", *JOB, *settings, "--root", str(raw), "--work", str(work), "--json"]
        return Quadrank(words, tmp_path_factory.mktemp("said"), write)

    return process


def in_hand(work: Path) -> str:
    """What a killed job was at, by its own record and its last checkpoint."""
    record = JobRecord(Workspace(work).job("simulated", "lr")).stages
    stage = next((name for name, one in record.items() if one.status == "running"), "between stages")
    states = [saved_state(run) for run in Workspace(work).runs.glob("*")]
    step = next((state.step for state in states if state is not None), None)
    return stage if stage != "train" or step is None else f"{stage}, {step} steps saved"


def first_done(log: str) -> str:
    """The first stage that a job does not skip, and why: what came of the kill before it."""
    return next(
        (line for line in log.splitlines() if re.match(r"[a-z]+: run, ", line)), "killed before its first stage"
    )


@pytest.fixture(scope="module")
def whole(begin: Begin, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], float]:
    """The JSON line of a job that nothing interrupts, and the seconds from its first stage to its end."""
    process = begin(tmp_path_factory.mktemp("whole"))
    process.wait_for("features:")
    began = time.monotonic()
    assert process.ended() == 0, process.said
    return process.result, time.monotonic() - began


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
        while not self._ended.wait(0.1):
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


def ends_as(expected: dict[str, Any], work: Path, result: dict[str, Any]) -> None:
    """A job of several processes made what one of one process makes: one run, told to MLflow once."""
    assert result["metrics"]["test"]["auc"] == pytest.approx(expected["metrics"]["test"]["auc"], abs=1e-6)
    assert len(list(Workspace(work).runs.glob("*/metrics.json"))) == 1
    assert in_mlflow(work) == ["FINISHED"]


def test_a_job_goes_on_after_a_kill_inside_each_kind_of_write(begin, whole, tmp_path):
    """One job, killed in turn inside each write that others read: `-s` prints what came of each."""
    reader = Reader(tmp_path)
    reader.start()
    for write in AIMS:
        process = begin(tmp_path, write=write)
        assert process.ended() == -signal.SIGKILL, process.said
        print(f"before: {first_done(process.said)} | killed: {write} | in hand: {in_hand(tmp_path)}", flush=True)
    process = begin(tmp_path)
    assert process.ended() == 0, process.said
    print(f"at last: {first_done(process.said)}", flush=True)
    reader.end()
    assert reader.broken == []
    assert reader.seen > 0
    ends_as(whole[0], tmp_path, process.result)
    run = str(process.result["run_id"])
    bundles = Workspace(tmp_path).bundles("simulated")
    assert (bundles / "CURRENT").read_text() == run
    assert [json.loads(line)["to"] for line in (bundles / "HISTORY.jsonl").read_text().splitlines()] == [run]
    champion = Registry(tmp_path).get_alias("quadrank-simulated", "champion")
    assert champion is not None
    assert champion.tags["model_version"] == run


def test_a_job_goes_on_after_a_kill_at_any_instant(begin, whole, tmp_path):
    """`-s` prints where each kill came, and what the next process began with."""
    expected, seconds = whole
    draw, kills, jobs = random.Random(15), 0, 0
    while kills < KILLS:
        work = tmp_path / f"work-{jobs}"
        jobs += 1
        reader = Reader(work)
        reader.start()
        result: dict[str, Any] | None = None
        untouched = True
        while result is None:
            process, moment = begin(work), draw.uniform(0, seconds)
            process.wait_for("features:")
            began = time.monotonic()
            if kills < KILLS:
                time.sleep(moment)
                if process.send(signal.SIGKILL):
                    assert process.ended() == -signal.SIGKILL
                    kills, untouched = kills + 1, False
                    share = f"{moment / seconds:.0%} of a job's time"
                    print(f"{kills}: {first_done(process.said)} | killed after {share}: {in_hand(work)}", flush=True)
                    continue
            assert process.ended() == 0, process.said
            result = process.result
            if untouched:  # the instant came after its end: draw from what a job takes now
                seconds = min(seconds, time.monotonic() - began)
        reader.end()
        print(f"job {jobs} at last: {first_done(process.said)}", flush=True)
        assert reader.broken == []
        assert reader.seen > 0
        ends_as(expected, work, result)


def test_sigterm_saves_and_ends_a_training_with_75_within_ten_seconds(begin, whole, tmp_path):
    """Only evaluations write checkpoints here, so that one of another step is the signal's."""
    process = begin(tmp_path, *SELDOM)
    process.wait_for("training lr")
    while not list(tmp_path.glob("runs/*/checkpoint.json")):
        time.sleep(0.01)
    asked = time.monotonic()
    assert process.send(signal.SIGTERM)
    code, took = process.ended(), time.monotonic() - asked
    assert (code, process.result["exit_code"], process.result["status"]) == (75, 75, "error"), process.said
    assert process.result["error"] == "stopped. The same command goes on where it stood"
    assert took < 10
    (run_dir,) = Workspace(tmp_path).runs.iterdir()
    state = saved_state(run_dir)
    assert state is not None
    assert state.step > state.last_evaluation, "the last evaluation's checkpoint, and no step after it"
    assert in_mlflow(tmp_path) == ["KILLED"]
    process = begin(tmp_path, *SELDOM)
    assert process.ended() == 0, process.said
    assert f"train: run, unfinished: resumes from step {state.step} " in process.said
    ends_as(whole[0], tmp_path, process.result)


def test_of_two_jobs_at_once_one_works_and_one_ends_with_7(begin, tmp_path):
    first = begin(tmp_path)
    first.wait_for("train: run")
    second = begin(tmp_path)
    assert second.ended() == 7
    assert second.result["exit_code"] == 7
    assert f"another job on 'simulated' is running in this folder: pid {first.pid} on " in second.result["error"]
    assert first.ended() == 0, first.said
    assert [run.name for run in Workspace(tmp_path).runs.iterdir()] == [first.result["run_id"]]
    assert in_mlflow(tmp_path) == ["FINISHED"]
