"""The chain of stages on a small log: what runs again, what is skipped, and why."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime

import polars as pl
import pytest

import pipelines.gate.pointers
import pipelines.stages.hand
import pipelines.stages.run
import pipelines.stages.steps
from ctr.data.columns import column
from ctr.reporting.mlflow_registry import Registry
from ctr.reporting.mlflow_store import MlflowStore
from features.errors import ConfigError, DataError, LockError
from pipelines.gate.settings import GateRules
from pipelines.gate.verdict import Finding, Verdict
from pipelines.job.train import Job
from pipelines.stages.run import plan_job
from pipelines.stages.steps import Features
from tests.pipelines.stages.shop import PASSED, STAGES, Shop, does, kill, kill_at, shop_in

pytestmark = pytest.mark.usefixtures("the_gate_passes")


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


def test_rows_of_one_label_stop_a_job_before_training(copy, monkeypatch):
    log = copy.folder / "raw" / "log.parquet"
    pl.read_parquet(log).with_columns(pl.col("time") + 1).write_parquet(log)
    monkeypatch.setattr(Job, "fit", lambda *_: pytest.fail("it trains"))
    monkeypatch.setattr("pipelines.job.evaluate.column", lambda data, split, name: 0 * column(data, split, name))
    with pytest.raises(DataError, match="test rows: AUC needs both classes"):
        copy.run()


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


def test_an_export_tells_of_the_registry_without_its_password(copy, monkeypatch):
    monkeypatch.setattr(MlflowStore, "shown", "the registry")
    shutil.rmtree(copy.workspace.bundles("shop"))
    copy.run()
    (told,) = [line for line in copy.said.splitlines() if line.startswith("registered quadrank-shop version ")]
    assert told.endswith(" in the registry")


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


def test_a_refused_job_says_why_in_its_summary_and_on_the_registered_version(copy, monkeypatch):
    refusal = Verdict("shop", None, (Finding("auc", False, 0.5, "", "0.5 is too low"),))
    monkeypatch.setattr(pipelines.stages.steps, "judge", lambda *_: refusal)
    copy.rules = GateRules(rows=1_000)
    assert copy.run().closed(0.0)["error"] == "auc: 0.5 is too low"
    with Registry(copy.workspace.root).store.contact() as client:
        tags = client.get_model_version("quadrank-shop", "1").tags
    assert {name: tags.get(name) for name in refusal.tags()} == refusal.tags()


def test_a_refused_bundle_whose_version_was_taken_out_is_refused_all_the_same(copy, monkeypatch):
    refusal = Verdict("shop", None, (Finding("auc", False, 0.5, "", "0.5 is too low"),))
    monkeypatch.setattr(pipelines.stages.steps, "judge", lambda *_: refusal)
    with Registry(copy.workspace.root).store.contact() as client:
        client.delete_registered_model("quadrank-shop")
    copy.rules = GateRules(rows=1_000)
    assert copy.run().exit_code == 6


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
