"""When a run trains its target-only control, and what it says of one that another run trained."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ctr.config import ModelConfig, Preset, TrainConfig
from features.errors import DataError, QuadRankError
from features.store.feature_set import FeatureSet, read_arrow, write_arrow
from pipelines.job import train
from pipelines.job.summary import Summary
from pipelines.job.train import Job
from pipelines.workspace import Workspace
from tests.toy import toy_feature_set

MODEL = ModelConfig(embedding_dim=4, vector_dim=4, attention_dim=4, attention="mean", tower="linear")
TRAIN = TrainConfig(epochs=1, batch_size=50, evaluations_per_epoch=1)


class Untracked:
    """A tracker that keeps nothing but tags."""

    def __init__(self) -> None:
        self.tags: dict[str, str] = {}

    def set_tag(self, name: str, value: str) -> None:
        self.tags[name] = value

    def logged_steps(self, name: str) -> set[int]:
        return set()

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


class Runs:
    """Runs on one feature set, one after the other; `said` is what the last one printed."""

    def __init__(self, folder: Path) -> None:
        self.workspace = Workspace(folder)
        self.data: FeatureSet = toy_feature_set(self.workspace.feature_sets / "toy" / "v1", rows=400, users=20)
        self.said, self.tags = "", {}

    def run(self, **changes: Any) -> Summary:
        """One run with these settings of training, or with others of the model (`use_history`)."""
        of_model = {key: value for key, value in changes.items() if key in ModelConfig.model_fields}
        of_train = {key: value for key, value in changes.items() if key in TrainConfig.model_fields}
        preset = Preset(model=MODEL.model_copy(update=of_model), train=TRAIN.model_copy(update=of_train))
        out, tracker = io.StringIO(), Untracked()
        job = Job.start(preset, self.data, self.workspace, Console(file=out, width=500))
        summary = job.train_and_evaluate(tracker).summary  # type: ignore[arg-type]
        self.said, self.tags = out.getvalue(), tracker.tags
        return summary

    def change(self, split: str, weights: Callable[[dict[str, Any]], Any]) -> None:
        """Give the rows of a split other weights."""
        for path in (self.data.path / "rows" / split).iterdir():
            columns = {name: values.copy() for name, values in read_arrow(path).items()}
            path.unlink()
            write_arrow(path, columns | {"weight": weights(columns)})

    def trained_control(self, summary: Summary) -> bool:
        return (self.workspace.runs / str(summary.run_id) / "target_only").is_dir()


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return Runs(tmp_path)


def test_weekly_trains_the_control_once_in_seven_days(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    first = runs.run(controls="weekly")
    assert runs.trained_control(first) and first.controls["target_only"]["run_id"] == first.run_id
    second = runs.run(controls="weekly")
    assert not runs.trained_control(second)
    assert second.controls["target_only"] == first.controls["target_only"]
    day = first.controls["target_only"]["day"]
    assert f"target-only control: of run {first.run_id}, {day}" in runs.said and f"target-only of {day}" in runs.said
    assert runs.tags["control.target_only.run"] == first.run_id
    record = json.loads((runs.workspace.runs / str(second.run_id) / "metrics.json").read_text())
    assert record["controls"]["target_only"]["run_id"] == first.run_id
    # A run that took over a control is none to take it over from, however young it is.
    monkeypatch.setattr(train, "OLDEST_CONTROL", timedelta(0))
    third = runs.run(controls="weekly")
    assert runs.trained_control(third) and third.controls["target_only"]["run_id"] == third.run_id


def test_seven_days_are_the_limit() -> None:
    assert timedelta(days=7) == train.OLDEST_CONTROL


def test_weekly_trains_the_control_where_recent_runs_are_of_other_settings(runs: Runs) -> None:
    runs.run(controls="always")
    assert runs.trained_control(runs.run(learning_rate=0.01))
    assert runs.trained_control(runs.run(embedding_dim=5))
    assert not runs.trained_control(runs.run())


def test_always_trains_it(runs: Runs) -> None:
    runs.run(controls="always")
    again = runs.run(controls="always")
    assert runs.trained_control(again) and again.controls["target_only"]["run_id"] == again.run_id
    assert " of 20" not in runs.said


def test_never_says_so_and_has_none(runs: Runs) -> None:
    runs.run(controls="always")
    without = runs.run(controls="never")
    assert not runs.trained_control(without) and "target_only" not in without.controls
    assert "no target-only control: train.controls is never" in runs.said
    assert runs.tags["control.target_only.run"] == "none"


def test_a_model_without_history_is_its_own_control(runs: Runs) -> None:
    found = runs.run(use_history=False, controls="never")
    assert not runs.trained_control(found)
    assert found.controls["target_only"]["run_id"] == found.run_id
    assert found.controls["target_only"]["auc"] == found.metrics["test"]["auc"]


def test_what_says_that_a_run_is_finished_is_written_last(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill while the run's files go to MLflow leaves a run that can be gone on with."""
    logged: dict[str, str] = {}

    def log_file(self: Untracked, path: Path, folder: str) -> None:
        logged[path.name] = path.read_text()
        if path.name == "calibration.json":
            raise KeyboardInterrupt

    monkeypatch.setattr(Untracked, "log_file", log_file, raising=False)
    with pytest.raises(KeyboardInterrupt):
        runs.run(use_history=False)
    (run_dir,) = runs.workspace.runs.iterdir()
    assert runs.workspace.unfinished_run("latest") == run_dir
    monkeypatch.setattr(Untracked, "log_file", lambda *_: None)
    summary = runs.run(use_history=False)
    assert runs.workspace.run("latest").name == summary.run_id
    assert json.loads(logged["metrics.json"])["metrics"] == summary.metrics


def test_a_run_that_goes_on_with_other_settings_records_them(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Job, "evaluate", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        runs.run(use_history=False)
    (run_dir,) = runs.workspace.runs.iterdir()
    monkeypatch.undo()
    before = json.loads((run_dir / "config.json").read_text())
    model = MODEL.model_copy(update={"use_history": False})
    preset, tracker, out = Preset(model=model, train=TRAIN), Untracked(), io.StringIO()
    for rate, said in ((TRAIN.learning_rate, ""), (0.25, "goes on with train.learning_rate=0.25")):
        preset = preset.model_copy(update={"train": TRAIN.model_copy(update={"learning_rate": rate})})
        job = Job.resume("latest", preset, runs.data, runs.workspace, Console(file=out, width=500))
        job.fit(tracker)  # type: ignore[arg-type]
        record = json.loads((run_dir / "config.json").read_text())
        assert record["preset"]["train"].pop("learning_rate") == rate
        assert ("goes on with" in out.getvalue()) == bool(said) and said in out.getvalue()
    assert tracker.tags == {"resumed_with": "train.learning_rate=0.25"}
    before["preset"]["train"].pop("learning_rate")
    assert record == before


@pytest.mark.parametrize("split", ["valid", "test"])
def test_rows_of_one_label_are_refused_before_training(runs: Runs, split: str) -> None:
    for path in (runs.data.path / "rows" / split).iterdir():
        columns = {name: values.copy() for name, values in read_arrow(path).items()}
        columns["label"][:] = 0
        path.unlink()
        write_arrow(path, columns)
    with pytest.raises(DataError, match=rf"{split}.* rows: AUC needs both classes, but 0 of \d+ rows are positive"):
        runs.run(controls="never")
    assert not runs.workspace.runs.exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"batch_size": 401}, "Set train.batch_size between 2 and 318"),
        ({"metric": "group_auc"}, "train.metric group_auc: the log does not name the request"),
        ({"list_loss": 0.1}, "train.list_loss 0.1: compares the candidates of one request"),
        ({"compile": True, "device": "cpu"}, "train.compile: meant for CUDA"),
        ({"tasks": ("like",)}, "model.tasks: the feature set has no label 'like'"),
    ],
)
def test_a_run_that_is_refused_leaves_no_folder(runs: Runs, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(QuadRankError, match=reason):
        runs.run(**changes)
    assert not runs.workspace.runs.exists()


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_rows_of_one_label_or_none_that_weigh_anything_are_refused_before_training(runs: Runs, split: str) -> None:
    runs.change(split, lambda columns: columns["weight"] * (columns["label"] == 0))
    of = rf"{split} rows of a weight above 0: AUC needs both classes, but 0 of \d+ rows are positive"
    with pytest.raises(DataError, match=of):
        runs.run()
    runs.change(split, lambda columns: columns["weight"] * 0)
    with pytest.raises(DataError, match=rf"{split} rows: the weight 'importance' of all \d+ is 0"):
        runs.run()
    assert not runs.workspace.runs.exists()


def test_feature_sets_may_lie_on_another_disk(tmp_path: Path) -> None:
    disk, work = tmp_path / "disk", tmp_path / "work"
    disk.mkdir()
    work.mkdir()
    (work / "feature_sets").symlink_to(disk)
    runs = Runs(work)
    summary = runs.run(use_history=False)
    config = json.loads((runs.workspace.runs / str(summary.run_id) / "config.json").read_text())
    assert config["feature_set"] == "feature_sets/toy/v1"


def test_a_first_evaluation_that_is_worse_than_the_base_rate_is_told_once(runs: Runs) -> None:
    runs.run(learning_rate=1.0, evaluations_per_epoch=3, patience=0)
    assert runs.said.count("warning: the first evaluation on the validation rows has a log loss of") == 1
    assert f"worse than {train.base_rate_log_loss(runs.data, 'valid'):.4f}, which the mean label alone has" in runs.said
    assert "raise model.id_dropout" in runs.said
    assert "or evaluate more often with train.evaluations_per_epoch" in runs.said
    runs.run()
    assert "first evaluation" not in runs.said
