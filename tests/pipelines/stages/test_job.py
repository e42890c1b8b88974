"""The chain of stages on a small log: done stages are skipped, and a kill anywhere is gone on from."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from rich.console import Console
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
from ctr.training.train_step import TrainStep
from features.errors import ConfigError, DataError, LockError, StoreAwayError
from features.stopping import Stopped, listening
from pipelines.gate.settings import GateRules
from pipelines.gate.verdict import Finding, Verdict
from pipelines.job.summary import Summary
from pipelines.job.train import Job
from pipelines.job_settings import JobSettings
from pipelines.operate.clock import StageClock
from pipelines.source import Source
from pipelines.stages.run import plan_job, run_job
from pipelines.stages.steps import Features
from pipelines.workspace import Workspace
from tests.trained import built_feature_set, raw_contract

MODEL = """
model: {attention: mean, tower: linear, embedding_dim: 4, vector_dim: 4, attention_dim: 4}
train: {epochs: 2, batch_size: 64, evaluations_per_epoch: 2, patience: 0, controls: never, device: cpu}
"""
STAGES = ("features", "train", "evaluate", "export", "gate", "promote")
PASSED = Verdict("shop", None, (Finding("parity", True),))


class Killed(BaseException):
    """Stands for the signal that ends a process."""


@dataclass
class Shop:
    """One workspace, its log and its job."""

    folder: Path
    overrides: dict[str, Any] = field(default_factory=dict)
    as_of: str | None = None
    checks: dict[str, Any] = field(default_factory=dict)
    said: str = ""
    rules: GateRules = field(default_factory=GateRules)

    def settings(self) -> JobSettings:
        self.out = io.StringIO()
        contract = raw_contract(self.folder / "raw")
        contract = contract.model_copy(update={"checks": contract.checks.model_copy(update=self.checks)})
        return JobSettings(
            Source(contract, self.as_of),
            Path("conf/data/shop.yaml"),
            self.folder / "model.yaml",
            Path(__file__).parents[3] / "conf" / "train.yaml",
            self.overrides,
            self.workspace,
            Console(file=self.out, width=500),
        )

    @property
    def workspace(self) -> Workspace:
        return Workspace(self.folder / "work")

    def run(self) -> Summary:
        try:
            return run_job(self.settings(), self.rules, StageClock())
        finally:
            self.said = self.out.getvalue()

    def killed(self) -> None:
        with pytest.raises(Killed):
            self.run()

    def weights(self, summary: Summary) -> bytes:
        return (self.workspace.runs / str(summary.run_id) / "model.safetensors").read_bytes()

    def mlflow_runs(self) -> list[Any]:
        client = Tracker(self.workspace.root).store.client
        experiment = client.get_experiment_by_name("quadrank-shop")
        return list(client.search_runs([experiment.experiment_id]))


def shop_in(folder: Path) -> Shop:
    built_feature_set(folder)  # for its raw log
    shutil.rmtree(folder / "feature_sets")
    (folder / "model.yaml").write_text(MODEL, encoding="utf-8")
    return Shop(folder)


@pytest.fixture(scope="module", autouse=True)
def the_gate_passes() -> Iterator[None]:
    """Its log has random clicks, which no model predicts better than popularity does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipelines.stages.steps, "judge", lambda *_: PASSED)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Shop, Summary]:
    """A job that nothing interrupts. Tests that change its workspace work in a copy."""
    shop = shop_in(tmp_path_factory.mktemp("whole"))
    return shop, shop.run()


@pytest.fixture
def copy(whole: tuple[Shop, Summary], tmp_path: Path) -> Shop:
    """The same log and workspace, after the job."""
    shutil.copytree(whole[0].folder, tmp_path / "copy")
    return Shop(tmp_path / "copy")


def does(summary: Summary) -> dict[str, str]:
    return {name: found["does"] for name, found in summary.stages.items()}


def kill_at(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, when: Callable[..., bool]) -> None:
    """Kill instead of a call for which `when` holds."""
    original = getattr(owner, name)

    def call(*arguments: Any, **named: Any) -> Any:
        if when(*arguments):
            raise Killed
        return original(*arguments, **named)

    monkeypatch.setattr(owner, name, call)


def test_a_job_runs_every_stage_and_then_none(whole):
    shop, summary = whole
    assert does(summary) == dict.fromkeys(STAGES, "run")
    assert (summary.status, summary.exit_code) == ("done", 0)
    again = shop.run()
    assert (again.status, again.exit_code) == ("nothing new", 0)
    assert does(again) == dict.fromkeys(STAGES, "skip")
    assert (again.run_id, again.bundle, again.metrics) == (summary.run_id, summary.bundle, summary.metrics)
    assert f"nothing new: {summary.run_id} is of this data" in shop.said
    assert len(shop.mlflow_runs()) == 1


def test_new_rows_build_and_train_again(copy, whole, monkeypatch):
    log = copy.folder / "raw" / "log.parquet"
    pl.read_parquet(log).with_columns(pl.col("time") + 1).write_parquet(log)
    plan = plan_job(copy.settings(), copy.rules)["stages"]
    assert plan["features"] == {"does": "run", "reason": "inputs changed: log.parquet"}
    assert plan["train"] == {"does": "run", "reason": "features runs before it"}
    monkeypatch.setattr(Job, "fit", lambda *_: kill())
    copy.killed()
    assert "train: run, inputs changed: feature set" in copy.said
    assert len(list(copy.workspace.runs.iterdir())) == 2


def test_a_later_day_without_rows_is_nothing_new(copy):
    copy.as_of = "2199-01-01"
    first = plan_job(copy.settings(), copy.rules)["stages"]["features"]
    assert first == {"does": "run", "reason": "settings changed: newest day"}
    newest = pl.read_parquet(copy.folder / "raw" / "log.parquet")["time"].max()
    stage = Features(copy.settings(), copy.rules)
    assert stage.basis({}).settings["newest day"] == datetime.fromtimestamp(newest, UTC).date().isoformat()
    copy.as_of = "2199-01-02"
    assert Features(copy.settings(), copy.rules).basis({}) == stage.basis({})


def test_a_log_that_became_too_old_is_not_nothing_new(copy):
    copy.checks = {"max_age": 7 * 86_400_000_000}
    copy.as_of = "2199-01-01"
    stage = Features(copy.settings(), copy.rules)
    (built,) = (copy.workspace.feature_sets / "shop").glob("*/MANIFEST.json")
    found = {"feature_set": built.parent.relative_to(copy.workspace.root).as_posix()}
    assert "checks.max_age allows 7.0 days" in str(stage.missing(found))
    with pytest.raises(DataError, match=r"checks\.max_age allows 7\.0 days"):
        copy.run()
    copy.as_of = None
    copy.checks = {}
    assert Features(copy.settings(), copy.rules).missing(found) is None


def test_a_day_that_is_none_is_refused(copy):
    copy.as_of = "tomorrow"
    with pytest.raises(ConfigError, match="--as-of tomorrow: not a date"):
        copy.run()


def test_a_setting_of_no_weight_trains_nothing(copy):
    copy.overrides = {"train": {"checkpoint": {"minutes": 1}}}
    assert copy.run().status == "nothing new"


def test_a_setting_of_the_control_evaluates_nothing_that_is_finished(copy, whole):
    """`metrics.json` says that a run is finished, and a finished run is never reopened."""
    copy.overrides = {"train": {"controls": "weekly"}}
    assert plan_job(copy.settings(), copy.rules)["stages"]["evaluate"]["reason"] == "settings changed: train.controls"
    summary = copy.run()
    assert does(summary)["train"] == "skip" and summary.metrics == whole[1].metrics


def test_another_setting_trains_and_says_which(copy):
    copy.overrides = {"train": {"learning_rate": 0.01}}
    assert plan_job(copy.settings(), copy.rules)["stages"]["train"] == {
        "does": "run",
        "reason": "settings changed: train.learning_rate",
    }


def test_other_code_runs_again_and_says_so(copy, monkeypatch):
    monkeypatch.setattr(pipelines.stages.steps, "source_hash", lambda: "f00dface0123")
    reason = plan_job(copy.settings(), copy.rules)["stages"]["train"]["reason"]
    assert reason.startswith("code changed: ") and reason.endswith(" is now f00dface0123")


@pytest.mark.parametrize(
    ("gone", "stage", "reason"),
    [
        ("feature_sets/shop/*/MANIFEST.json", "features", "its feature set is gone: "),
        ("runs/*/model.safetensors", "train", "model.safetensors is gone"),
        ("runs/*/metrics.json", "evaluate", "metrics.json is gone"),
        ("bundles/shop/*/ranker.onnx", "export", "its bundle cannot be used: "),
    ],
)
def test_a_result_that_is_gone_is_made_again(copy, gone, stage, reason):
    (file,) = (path for path in copy.workspace.root.glob(gone) if path.is_file())
    file.unlink()
    found = plan_job(copy.settings(), copy.rules)["stages"][stage]
    assert found["does"] == "run" and reason in found["reason"]


@pytest.mark.parametrize(("file", "stage"), [("model.safetensors", "train"), ("metrics.json", "evaluate")])
def test_a_result_that_was_changed_is_not_used(copy, file, stage):
    (path,) = copy.workspace.runs.glob(f"*/{file}")
    path.write_bytes(path.read_bytes() + b" ")
    assert "(sha256 differs)" in plan_job(copy.settings(), copy.rules)["stages"][stage]["reason"]


def test_a_verdict_stands_until_there_is_another_bundle(copy, monkeypatch):
    refusal = Verdict("shop", None, (Finding("auc", False, 0.5, "", "0.5 is too low"),))
    monkeypatch.setattr(pipelines.stages.steps, "judge", lambda *_: refusal)
    copy.rules = GateRules(rows=1_000)
    summary = copy.run()
    assert (summary.status, summary.exit_code) == ("gate refused", 6)
    assert does(summary) == {**dict.fromkeys(STAGES, "skip"), "gate": "run", "promote": "leave out"}
    assert summary.stages["promote"]["reason"] == "the gate refused the bundle: auc: 0.5 is too low"
    monkeypatch.setattr(pipelines.stages.steps, "judge", lambda *_: PASSED)
    again = copy.run()
    assert (again.status, again.exit_code, does(again)["gate"]) == ("gate refused", 6, "skip")


def another_serves(shop: Shop, name: str) -> None:
    """A copy of the bundle that serves is promoted, as by hand, and forgotten that the first one was."""
    bundles = shop.workspace.bundles("shop")
    served = (bundles / "CURRENT").read_text()
    shutil.copytree(bundles / served, bundles / name)
    (bundles / "HISTORY.jsonl").unlink(missing_ok=True)
    (bundles / "CURRENT").write_text(name)


def test_what_was_refused_is_judged_again_once_another_bundle_serves(copy, monkeypatch):
    """Such as after a roll-back: what it was worse than is the champion no more."""
    refusal = Verdict("shop", "the-champion", (Finding("auc", False, 0.5, "", "0.5 is too low"),))
    another_serves(copy, "the-champion")
    monkeypatch.setattr(pipelines.stages.steps, "judge", lambda *_: refusal)
    copy.rules = GateRules(rows=1_000)
    assert [copy.run().exit_code, does(copy.run())["gate"]] == [6, "skip"]
    another_serves(copy, "the-one-before")
    passed = Verdict("shop", "the-one-before", (Finding("parity", True),))
    monkeypatch.setattr(pipelines.stages.steps, "judge", lambda *_: passed)
    summary = copy.run()
    assert summary.stages["gate"]["reason"] == "it was judged against the-champion, and the-one-before serves now"
    assert summary.exit_code == 0


def test_what_passed_is_not_promoted_over_another_champion_than_it_was_judged_against(whole, tmp_path, monkeypatch):
    """Killed between gate and promote, and another bundle serves before it goes on."""
    shop = shop_in(tmp_path)
    with monkeypatch.context() as patch:
        kill_at(patch, pipelines.gate.pointers, "point_at", lambda *_: True)
        shop.killed()
    bundles = shop.workspace.bundles("shop")
    shutil.copytree(bundles / (bundles / "NEWEST").read_text(), bundles / "another")
    (bundles / "CURRENT").write_text("another")
    refusal = Verdict("shop", "another", (Finding("auc", False, 0.5, "", "0.5 is too low"),))
    monkeypatch.setattr(pipelines.stages.steps, "judge", lambda *_: refusal)
    summary = shop.run()
    assert summary.exit_code == 6
    assert (bundles / "CURRENT").read_text() == "another"


def test_what_was_rolled_back_is_not_promoted_again(copy):
    pointer = copy.workspace.bundles("shop") / "CURRENT"
    pointer.write_text("an-older-one")
    assert copy.run().status == "nothing new"
    assert pointer.read_text() == "an-older-one"


def test_a_second_job_is_kept_out(copy):
    with copy.workspace.lock("shop"), pytest.raises(LockError, match=r"another job on 'shop'.*pid \d+ on "):
        copy.run()


def test_a_record_that_cannot_be_read_runs_everything(copy):
    copy.workspace.job("shop", "model").write_text("{half")
    plan = plan_job(copy.settings(), copy.rules)["stages"]
    assert {found["does"] for found in plan.values()} == {"run"}
    assert "model.json: cannot be read: every stage runs as if it never had" in copy.out.getvalue()


def test_a_failed_stage_says_why_and_goes_on(copy):
    log = copy.folder / "raw" / "log.parquet"
    good = log.read_bytes()
    pl.read_parquet(log).with_columns(clicked=pl.lit(7)).write_parquet(log)
    with pytest.raises(DataError):
        copy.run()
    reason = plan_job(copy.settings(), copy.rules)["stages"]["features"]["reason"]
    assert reason.startswith("failed (") and reason.endswith("starts again")
    log.write_bytes(good)
    assert copy.run().status == "nothing new"


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


def killed_at_step(patch: pytest.MonkeyPatch, number: int, how: Callable[[], None]) -> None:
    step = TrainStep.__call__

    def take(self: TrainStep, batches: Any, rate: float, done: int) -> Any:
        if done == number:
            how()
        return step(self, batches, rate, done)

    patch.setattr(TrainStep, "__call__", take)


def kill() -> None:
    raise Killed


def test_sigterm_in_training_saves_and_the_mlflow_run_ends_as_killed(tmp_path, monkeypatch):
    shop = shop_in(tmp_path)
    with monkeypatch.context() as patch, listening(kill), pytest.raises(Stopped):
        killed_at_step(patch, 5, lambda: os.kill(os.getpid(), signal.SIGTERM))
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
        killed_at_step(patch, 5, kill)
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


def test_a_damaged_checkpoint_starts_another_run(copy, monkeypatch):
    copy.overrides = {"train": {"learning_rate": 0.01}}
    with monkeypatch.context() as patch:
        killed_at_step(patch, 5, kill)
        copy.killed()
    (tensors,) = copy.workspace.runs.glob("*/checkpoint-4.safetensors")
    tensors.write_bytes(b"damaged")
    with monkeypatch.context() as patch:
        patch.setattr(pipelines.stages.steps.Evaluate, "run", lambda *_: kill())
        copy.killed()
    assert "missing or changed since the checkpoint was written" in copy.said and "A new run starts" in copy.said
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
