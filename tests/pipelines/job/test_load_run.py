"""A finished run read back: resolved once, from any folder, on its own contract alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from rich.console import Console
from safetensors.torch import save_file

from ctr.config import ModelConfig, Preset, TrainConfig
from features.build.build import build_feature_set
from features.errors import ConfigError, DataError
from features.store.feature_set import FeatureSet
from pipelines.inspect import explain, stress, submit
from pipelines.job import export
from pipelines.job.load_run import LoadedRun, load_run, parent_of, recent_control
from pipelines.job.train import Job
from pipelines.report import report
from pipelines.report.record import RunRecord
from pipelines.workspace import Workspace, metrics_of
from tests.features.raw import Tables, raw_log
from tests.toy import toy_feature_set
from tests.trained import random_model

PRESET = Preset(
    model=ModelConfig(embedding_dim=4, vector_dim=4, attention_dim=4, attention="mean", tower="linear"),
    train=TrainConfig(batch_size=100),
)
SMALL = PRESET.model_copy(update={"train": TrainConfig(batch_size=20)})


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """With a feature set and one finished run."""
    workspace = Workspace(tmp_path / "work")
    finished(workspace, toy_feature_set(workspace.feature_sets / "toy" / "v1", rows=200, users=20))
    return workspace


def finished(workspace: Workspace, feature_set: FeatureSet) -> Path:
    job = Job.start(PRESET, feature_set, workspace, Console(quiet=True))
    save_file(random_model(feature_set, PRESET.model).state_dict(), job.run_dir / "model.safetensors")
    (job.run_dir / "metrics.json").write_text("{}")
    return job.run_dir


def test_a_run_is_read_from_any_folder_and_after_the_workspace_moved(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = tmp_path / "moved"
    workspace.root.rename(moved)
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    found = load_run("latest", Workspace(Path("../moved")))
    assert found.feature_set.path.resolve() == moved / "feature_sets" / "toy" / "v1"
    assert found.folder.resolve().parent == moved / "runs" and not found.model.training


def test_another_contract_under_the_same_version_is_refused(workspace: Workspace) -> None:
    run = workspace.run("latest")
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"contract_fingerprint": "f" * 64}))
    with pytest.raises(ConfigError, match=f"v1: built from another contract than run {run.name} was trained on"):
        load_run(run.name, workspace)


def test_a_run_with_settings_of_another_version_is_refused(workspace: Workspace) -> None:
    run = workspace.run("latest")
    config = json.loads((run / "config.json").read_text())
    config["preset"]["model"]["match_bins"] = 0
    config["preset"]["train"]["pairwise"] = 0.0
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ConfigError, match=r"config\.json: 2 settings .* 'model\.match_bins': another version trained run"
    ):
        load_run(run.name, workspace)


BROKEN = ["{", "[]", b"\xff", "{}", '{"preset": 3, "contract_fingerprint": "a", "feature_set": "b"}']


@pytest.mark.parametrize("content", BROKEN)
def test_a_record_that_was_broken_by_hand_is_named(workspace: Workspace, content: str | bytes) -> None:
    (config,) = workspace.runs.glob("*/config.json")
    config.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as caught:
        load_run("latest", workspace)
    assert str(caught.value) == (
        f"{config}: is no record of a run's settings, contract and feature set any more. Put the file back as it was, "
        "or train again."
    )


@pytest.mark.parametrize("content", ["{", "[]", b"\xff", "{}", '{"metrics": {}, "tasks": {}, "controls": 3}'])
def test_metrics_that_were_broken_by_hand_are_named(workspace: Workspace, content: str | bytes) -> None:
    run = workspace.run("latest")
    (run / "metrics.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    wanted = (
        f"{run / 'metrics.json'}: is no record of a run's metrics and controls any more. Put the file back as it was, "
        "or train again."
    )
    with pytest.raises(DataError) as caught:
        metrics_of(run)
    assert str(caught.value) == wanted
    with pytest.raises(DataError) as caught:
        RunRecord.read(run)
    assert str(caught.value) == wanted


@pytest.mark.parametrize("name", ["config.json", "metrics.json"])
@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"controls": 3}'])
def test_a_run_whose_record_is_broken_lends_no_control(workspace: Workspace, name: str, content: str) -> None:
    """The job of tonight does not end for it."""
    run = workspace.run("latest")
    (run / name).write_text(content)
    feature_set = FeatureSet.open(workspace.feature_sets / "toy" / "v1")
    assert recent_control(PRESET, feature_set, workspace, datetime(2020, 1, 1, tzinfo=UTC)) is None


def later_rows(tables: Tables) -> None:
    log = tables["log"]
    tables["log"] = pl.concat([log, log.tail(6).with_columns(pl.col("time") + 3_600)])


def other_labels(tables: Tables) -> None:
    tables["log"] = tables["log"].with_columns(rating=6 - pl.col("rating"))


def other_ids(tables: Tables) -> None:
    """Another log, a little later."""
    for name, column in (("log", "item_id"), ("items", "item_id"), ("text", "item_id"), ("log", "user_id"),
                         ("users", "user_id")):  # fmt: skip
        tables[name] = tables[name].with_columns(pl.col(column) + 1_000)
    tables["log"] = tables["log"].with_columns(pl.col("time") + 60)


@pytest.mark.parametrize(
    ("change", "stands"), [(None, True), (later_rows, True), (other_labels, False), (other_ids, False)]
)
def test_a_control_stands_beside_runs_of_the_log_that_it_was_trained_on(
    tmp_path: Path, change: Callable[[Tables], None] | None, stands: bool
) -> None:
    workspace = Workspace(tmp_path)
    first = build_feature_set(raw_log(tmp_path / "raw"), workspace.feature_sets).feature_set
    run = Job.start(SMALL, first, workspace, Console(quiet=True)).run_dir
    control = {"run_id": run.name, "auc": 0.6}
    record = {"metrics": {"test": {}}, "tasks": {}, "controls": {"target_only": control}}
    (run / "metrics.json").write_text(json.dumps(record))
    second = build_feature_set(raw_log(tmp_path / "raw", change), workspace.feature_sets).feature_set
    found = recent_control(SMALL, second, workspace, datetime(2020, 1, 1, tzinfo=UTC))
    assert found == (control if stands else None)


def test_a_control_whose_feature_set_is_gone_stands_beside_no_run_of_another(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    first = build_feature_set(raw_log(tmp_path / "raw"), workspace.feature_sets).feature_set
    run = Job.start(SMALL, first, workspace, Console(quiet=True)).run_dir
    record = {"metrics": {"test": {}}, "tasks": {}, "controls": {"target_only": {"run_id": run.name}}}
    (run / "metrics.json").write_text(json.dumps(record))
    second = build_feature_set(raw_log(tmp_path / "raw", later_rows), workspace.feature_sets).feature_set
    shutil.rmtree(first.path)
    assert recent_control(SMALL, second, workspace, datetime(2020, 1, 1, tzinfo=UTC)) is None


def test_a_champion_whose_manifest_is_broken_means_a_full_training(workspace: Workspace) -> None:
    feature_set = FeatureSet.open(workspace.feature_sets / "toy" / "v1")
    bundle = workspace.bundles(feature_set.contract.name) / "b"
    bundle.mkdir(parents=True)
    (bundle / "MANIFEST.json").write_text("{")
    (bundle.parent / "CURRENT").write_text("b")
    assert parent_of("champion", PRESET, feature_set, workspace, Console(quiet=True)) is None


def test_a_run_of_another_contract_is_not_resumed(workspace: Workspace) -> None:
    run = workspace.run("latest")
    (run / "metrics.json").unlink()
    feature_set = load_unfinished(workspace)
    job = Job.resume("latest", PRESET, feature_set, workspace, Console(quiet=True))
    assert (job.run_dir, job.resumed) == (run, True)
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"contract_fingerprint": "f" * 64}))
    with pytest.raises(ConfigError, match="started on another contract than 'toy' as it is now"):
        Job.resume("latest", PRESET, feature_set, workspace, Console(quiet=True))


def load_unfinished(workspace: Workspace) -> FeatureSet:
    return FeatureSet.open(workspace.feature_sets / "toy" / "v1")


class Stop(Exception):  # noqa: N818  # no error: the command has shown what it uses
    pass


@pytest.mark.parametrize(
    ("module", "used", "call"),
    [
        (export, "export_model", lambda work: export.export_run("latest", None, work, Console(quiet=True))),
        (report, "RunRecord", lambda work: report.report_run("latest", None, work, Console(quiet=True))),
    ],
    ids=["export", "report"],
)
def test_a_run_that_ends_meanwhile_is_not_mixed_in(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, module: Any, used: str, call: Any
) -> None:
    """Another job finishes right after `latest` was resolved: weights and folder stay those of one run."""
    first = workspace.run("latest")
    shown: list[Path] = []

    def overtaken(run_id: str, work: Workspace) -> LoadedRun:
        found = load_run(run_id, work)
        later = work.runs / "29990101T000000Z-toy-ffff"
        shutil.copytree(found.folder, later)
        assert work.run("latest") == later
        return found

    def stop(*arguments: Any) -> None:
        shown.extend(one for one in arguments if isinstance(one, Path))
        raise Stop

    monkeypatch.setattr(module, "load_run", overtaken)
    monkeypatch.setattr(module, used, stop if used == "export_model" else type("Record", (), {"read": stop}))
    with pytest.raises(Stop):
        call(workspace)
    assert shown == [first]


@pytest.mark.parametrize("module", [explain, export, report, stress, submit])
def test_commands_leave_it_to_load_run_to_resolve_latest(module: Any) -> None:
    assert "workspace.run(" not in Path(module.__file__).read_text()
