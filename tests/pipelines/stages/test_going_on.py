"""A job that was killed, stopped or left alone goes on where it stood, and ends as one that nothing interrupted."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import ctr.serving.bundle
import features.build.publish
import pipelines.gate.pointers
import pipelines.stages.hand
import pipelines.stages.run
import pipelines.stages.steps
from ctr.reporting.entries import Tag
from ctr.reporting.mlflow_runs import Tracker
from ctr.reporting.outbox import Outbox
from ctr.training.checkpoint import saved_state
from features.errors import StoreAwayError
from features.stopping import Stopped, listening
from pipelines.job.summary import Summary
from pipelines.job.train import Job
from pipelines.stages.run import plan_job
from pipelines.workspace import LOCK, TRACKED
from tests.pipelines.stages.shop import STAGES, Shop, does, kill, kill_at, shop_in
from tests.trained import at_step

pytestmark = pytest.mark.usefixtures("the_gate_passes")


def test_kills_at_every_kind_of_publication_end_where_an_uninterrupted_job_does(whole, tmp_path, monkeypatch):
    """One job, killed in turn inside the publish of the feature set, a checkpoint, the bundle and a pointer flip."""
    shop = shop_in(tmp_path)
    work = shop.workspace.root
    with monkeypatch.context() as patch:
        kill_at(patch, features.build.publish, "point_at", lambda folder, version: True)
        shop.killed()
    assert not (work / "feature_sets/shop/CURRENT").exists()
    with monkeypatch.context() as patch:
        # The third of four evaluations: its tensors are written, its record is not.
        kill_at(patch, Path, "replace", lambda fresh, target: target.name == "checkpoint.json" and saved(work) == 8)
        shop.killed()
    (run_dir,) = (work / "runs").iterdir()
    stopped = saved_state(run_dir)
    assert stopped is not None and stopped.step == 8
    assert plan_job(shop.settings(), shop.rules)["stages"]["train"]["reason"] == (
        f"unfinished: resumes from step 8 of run {run_dir.name}"
    )
    with monkeypatch.context() as patch:
        kill_at(patch, Path, "rename", lambda path, target: path.name.startswith(ctr.serving.bundle.STAGING))
        shop.killed()
    assert [path for path in (work / "bundles/shop").iterdir() if not path.name.startswith(".")] == []
    with monkeypatch.context() as patch:
        kill_at(patch, pipelines.gate.pointers, "point_at", lambda *_: True)
        shop.killed()
    assert not (work / "bundles/shop/CURRENT").exists()

    summary = shop.run()
    assert does(summary) == {**dict.fromkeys(STAGES, "skip"), "promote": "run"}
    assert (summary.status, summary.run_id) == ("done", run_dir.name)
    expected, found = (load_file(path) for path in (model_of(*whole), run_dir / "model.safetensors"))
    assert all(bool((found[name] == tensor).all()) for name, tensor in expected.items())
    assert summary.metrics["test"]["auc"] == pytest.approx(whole[1].metrics["test"]["auc"], abs=1e-6)
    assert (work / "bundles/shop/CURRENT").read_text() == run_dir.name
    (tracked,) = shop.mlflow_runs()
    assert tracked.info.status == "FINISHED"
    steps = [point.step for point in history(shop, tracked, "valid.log_loss")]
    assert steps == [4, 8, 12, 16]


def history(shop: Shop, run: Any, name: str) -> list[Any]:
    client = Tracker(shop.workspace.root).store.client
    return sorted(client.get_metric_history(run.info.run_id, name), key=lambda point: point.step)


def model_of(shop: Shop, summary: Summary) -> Path:
    return shop.workspace.runs / str(summary.run_id) / "model.safetensors"


def saved(work: Path) -> int | None:
    states = [saved_state(folder) for folder in (work / "runs").iterdir()]
    return states[0].step if states and states[0] is not None else None


def test_sigterm_in_training_saves_and_the_mlflow_run_ends_as_killed(tmp_path, monkeypatch):
    shop = shop_in(tmp_path)
    with monkeypatch.context() as patch, listening(kill), pytest.raises(Stopped):
        at_step(patch, 5, lambda: os.kill(os.getpid(), signal.SIGTERM))
        shop.run()
    (run_dir,) = (shop.workspace.root / "runs").iterdir()
    state = saved_state(run_dir)
    assert state is not None and state.step == 6
    assert [run.info.status for run in shop.mlflow_runs()] == ["KILLED"]
    # Other settings start another run: of the first one nothing is left alive.
    shop.overrides = {"train": {"learning_rate": 0.01}}
    plan = plan_job(shop.settings(), shop.rules)["stages"]["train"]
    assert plan == {"does": "run", "reason": "settings changed: train.learning_rate"}


def test_a_run_that_nobody_goes_on_with_does_not_look_alive(copy, monkeypatch):
    copy.overrides = {"train": {"learning_rate": 0.01}}
    with monkeypatch.context() as patch:
        at_step(patch, 5, kill)
        patch.setattr(Tracker, "_open", opened_for_ever)
        copy.killed()
    assert sorted(run.info.status for run in copy.mlflow_runs()) == ["FINISHED", "RUNNING"]
    copy.overrides = {"train": {"learning_rate": 0.02}}
    with monkeypatch.context() as patch:
        patch.setattr(Job, "fit", lambda *_: kill())
        copy.killed()
    assert sorted(run.info.status for run in copy.mlflow_runs()) == ["FINISHED", "KILLED", "KILLED"]


@contextmanager
def opened_for_ever(tracker: Tracker, run_id: str) -> Iterator[None]:
    """Opens an MLflow run as `Tracker._open` does, and ends as SIGKILL does: without a word."""
    tracker._run_id = run_id
    yield


def test_a_job_that_was_killed_at_its_very_end_ends_in_mlflow_too(copy):
    """A kill after the last stage was recorded and before the MLflow run was ended."""
    record = copy.workspace.job("shop", "model")
    record.write_text(json.dumps(json.loads(record.read_text()) | {"closed": False}))
    store = Tracker(copy.workspace.root).store
    (run,) = copy.mlflow_runs()
    store.client.update_run(run.info.run_id, status="RUNNING")
    assert copy.run().status == "done"
    assert [run.info.status for run in copy.mlflow_runs()] == ["FINISHED"]
    assert json.loads(record.read_text())["closed"]


def test_a_drift_that_a_killed_job_told_nobody_is_told_by_the_next(copy):
    path = copy.workspace.job("shop", "model")
    record = json.loads(path.read_text()) | {"closed": False}
    record["stages"]["gate"]["result"] |= {"status": "drift", "exit_code": 3}
    path.write_text(json.dumps(record))
    first, second = copy.run(), copy.run()
    assert [(first.status, first.exit_code), (second.status, second.exit_code)] == [("drift", 3), ("nothing new", 0)]


def test_a_job_with_nothing_to_do_sends_what_waits_and_mends_what_moves_left(copy, monkeypatch):
    """Such as the alias after a roll-back while MLflow was away."""
    (run,) = copy.mlflow_runs()
    Outbox(next(copy.workspace.runs.iterdir()) / "outbox").append(Tag(run=run.info.run_id, name="later", value="yes"))
    monkeypatch.setattr(pipelines.stages.run, "mend", lambda name, workspace: [f"mended {name}"])
    assert copy.run().status == "nothing new"
    assert "mended shop" in copy.said
    assert [one.data.tags["later"] for one in copy.mlflow_runs()] == ["yes"]


def test_a_job_ends_in_mlflow_what_a_killed_training_left_open(copy):
    """`quadrank train`, killed by SIGKILL, of which nobody went on with."""
    client = Tracker(copy.workspace.root).store.client
    (finished,) = copy.mlflow_runs()
    run = client.create_run(finished.info.experiment_id, run_name="killed")
    folder = copy.workspace.new_run("shop")
    (folder / TRACKED).write_text(run.info.run_id)
    (folder / LOCK).write_text(
        json.dumps({"host": socket.gethostname(), "pid": 7, "since": "2026-01-01T00:00:00+00:00"})
    )
    assert copy.run().status == "nothing new"
    assert client.get_run(run.info.run_id).info.status == "KILLED"


def test_a_damaged_checkpoint_starts_another_run(copy, monkeypatch):
    copy.overrides = {"train": {"learning_rate": 0.01}}
    with monkeypatch.context() as patch:
        at_step(patch, 5, kill)
        copy.killed()
    (tensors,) = copy.workspace.runs.glob("*/checkpoint-4.safetensors")
    tensors.write_bytes(b"damaged")
    with monkeypatch.context() as patch:
        patch.setattr(pipelines.stages.steps.Evaluate, "run", lambda *_: kill())
        copy.killed()
    assert "missing or changed since the checkpoint was written" in copy.said
    assert "A new run starts" in copy.said
    assert len(list(copy.workspace.runs.iterdir())) == 3
    assert sorted(run.info.status for run in copy.mlflow_runs()) == ["FAILED", "FINISHED", "KILLED"]


def test_a_finished_run_is_evaluated_once(copy, monkeypatch):
    """A kill after `metrics.json` was written and before the stage was recorded."""
    record = copy.workspace.job("shop", "model")
    content = json.loads(record.read_text())
    content["stages"]["evaluate"] |= {"status": "running", "result": {}}
    record.write_text(json.dumps(content))
    monkeypatch.setattr(Job, "evaluate", lambda *_: kill())
    summary = copy.run()
    assert does(summary) == {**dict.fromkeys(STAGES, "skip"), "evaluate": "run"}


def test_a_published_bundle_whose_registration_is_not_known_waits_for_mlflow(copy, monkeypatch):
    """Killed before it was registered, and MLflow is away when the job goes on."""

    def away(*_: Any) -> None:
        raise StoreAwayError("server: does not answer")

    record = copy.workspace.job("shop", "model")
    content = json.loads(record.read_text())
    done = content["stages"]["export"]["result"]
    content["stages"]["export"] |= {"status": "running", "result": {"bundle": done["bundle"]}}
    record.write_text(json.dumps(content))
    monkeypatch.setattr(pipelines.stages.hand.Registry, "find_version", away)
    assert does(copy.run())["export"] == "run"
    assert json.loads(record.read_text())["stages"]["export"]["result"]["version"] == "2"


def test_a_published_bundle_is_registered_and_not_exported_again(copy, monkeypatch):
    """A kill after the bundle was published and before the stage was recorded."""
    record = copy.workspace.job("shop", "model")
    content = json.loads(record.read_text())
    done = content["stages"]["export"]["result"]
    content["stages"]["export"] |= {"status": "running", "result": {"bundle": done["bundle"]}}
    record.write_text(json.dumps(content))
    (copy.workspace.bundles("shop") / "NEWEST").unlink()
    monkeypatch.setattr(pipelines.stages.steps, "export_model", lambda *_: kill())
    summary = copy.run()
    assert does(summary) == {**dict.fromkeys(STAGES, "skip"), "export": "run"}
    assert json.loads(record.read_text())["stages"]["export"]["result"] == done
    assert (copy.workspace.bundles("shop") / "NEWEST").read_text() == str(summary.run_id)
