"""Trials of a study: which are kept, which are trained again, and that seeds differ in more than their start."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ctr.config import ModelConfig, Preset, TrainConfig
from features.errors import ConfigError, TryAgainError
from features.store.feature_set import FeatureSet
from pipelines.revision import hash_of_packages
from pipelines.study import trials
from pipelines.study.compare import trained_at
from pipelines.study.study import Plan
from pipelines.study.trials import TRIAL, Task, Trial, run_trials, train_one
from tests.toy import toy_feature_set

PRESET = Preset(
    model=ModelConfig(embedding_dim=4, vector_dim=4, attention_dim=4, attention="mean", tower="linear"),
    train=TrainConfig(batch_size=128, epochs=1, evaluations_per_epoch=1, patience=0, device="cpu"),
)


@pytest.fixture(scope="module")
def feature_set(tmp_path_factory: pytest.TempPathFactory) -> FeatureSet:
    return toy_feature_set(tmp_path_factory.mktemp("toy"), rows=600, users=30)


def plan(feature_set: FeatureSet, preset: Preset = PRESET) -> Plan:
    return Plan("lr", feature_set.contract, preset, shuffle_vectors=False, why="")


def planned(monkeypatch: pytest.MonkeyPatch, feature_set: FeatureSet, folder: Path, **changes: Any) -> list[Task]:
    """The tasks of a study of three seeds that would be trained, without training any."""
    found: list[Task] = []

    class Pool:
        def __init__(self, *_: Any, **__: Any) -> None:
            pass

        def __enter__(self) -> Pool:
            return self

        def __exit__(self, *_: Any) -> None:
            pass

        def submit(self, function: Any, task: Task) -> object:
            assert function is train_one
            found.append(task)
            return object()

    monkeypatch.setattr(trials, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(trials, "as_completed", lambda running: [])
    monkeypatch.setattr(trials, "_read", lambda task: task)
    said: list[str] = changes.pop("said", [])
    run_trials([plan(feature_set, **changes)], [feature_set], 3, folder, workers=1, say=said.append)
    return found


def finish(task: Task, **changes: Any) -> None:
    """What a trained trial leaves."""
    task.folder.mkdir(parents=True, exist_ok=True)
    record = {"key": task.key, "git_revision": "0123456789ab", "source_hash": task.code, "facts": {}} | changes
    (task.folder / TRIAL).write_text(json.dumps(record))


def test_seeds_vary_the_order_of_batches_too(
    feature_set: FeatureSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = planned(monkeypatch, feature_set, tmp_path)
    assert [task.seed for task in tasks] == [1, 2, 3]
    assert [task.preset.train.seed for task in tasks] == [1, 2, 3]
    assert [task.folder.name for task in tasks] == ["seed-1", "seed-2", "seed-3"]


def test_a_finished_trial_is_kept_and_one_of_other_settings_is_trained_again(
    feature_set: FeatureSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for task in planned(monkeypatch, feature_set, tmp_path)[:2]:
        finish(task)
    assert [task.seed for task in planned(monkeypatch, feature_set, tmp_path)] == [3]
    slower = PRESET.model_copy(update={"train": PRESET.train.model_copy(update={"learning_rate": 0.0005})})
    assert [task.seed for task in planned(monkeypatch, feature_set, tmp_path, preset=slower)] == [1, 2, 3]


def test_a_trial_of_other_code_is_trained_again_and_said_to_be(
    feature_set: FeatureSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, _ = planned(monkeypatch, feature_set, tmp_path)
    finish(first)
    older = replace(second, code="ffffffffffff")
    finish(older)
    said: list[str] = []
    assert [task.seed for task in planned(monkeypatch, feature_set, tmp_path, said=said)] == [2, 3]
    assert said == ["1 trials were trained by other code (git 0123456789ab): they are trained again"]


def test_code_that_changes_while_a_study_runs_stops_it(
    feature_set: FeatureSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = planned(monkeypatch, feature_set, tmp_path)[0]
    monkeypatch.setattr(trials, "source_hash", lambda: "ffffffffffff")
    with pytest.raises(ConfigError, match="seed-1: the code changed while the study ran"):
        train_one(task)
    assert not task.folder.exists()


def test_a_worker_that_was_killed_is_told_with_the_way_out(
    feature_set: FeatureSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Pool(ThreadPoolExecutor):
        def __init__(self, *_: Any, **__: Any) -> None:
            super().__init__(1)

    def killed(task: Task) -> None:
        raise BrokenProcessPool("A process in the process pool was terminated abruptly")

    monkeypatch.setattr(trials, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(trials, "train_one", killed)
    with pytest.raises(
        TryAgainError, match=r"lr, seed \d: .*was killed, as a system without free memory does.*--workers"
    ):
        run_trials([plan(feature_set)], [feature_set], 3, tmp_path, workers=2, say=lambda _: None)


def test_a_trained_trial_says_by_which_code(
    feature_set: FeatureSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = planned(monkeypatch, feature_set, tmp_path)[1]
    monkeypatch.undo()
    monkeypatch.setattr(trials, "git_revision", lambda: "abcdefabcdef")
    train_one(task)
    record = json.loads((task.folder / TRIAL).read_text())
    assert (record["key"], record["git_revision"], record["source_hash"]) == (task.key, "abcdefabcdef", task.code)
    assert [one.seed for one in planned(monkeypatch, feature_set, tmp_path)] == [1, 3]


def test_a_study_says_every_commit_that_its_trials_were_trained_at() -> None:
    found = {"lr": [Trial({}, {}, Path(), "b"), Trial({}, {}, Path(), "a")], "qin": [Trial({}, {}, Path(), "b")]}
    assert trained_at(found) == ["a", "b"]


def test_the_hash_of_sources_follows_every_source_file_and_nothing_else(tmp_path: Path) -> None:
    for package in ("features", "ctr", "pipelines", "tests"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("")
    before = hash_of_packages(tmp_path)
    (tmp_path / "tests" / "__init__.py").write_text("x = 1")
    (tmp_path / "ctr" / "notes.txt").write_text("x")
    assert hash_of_packages(tmp_path) == before
    for package in ("features", "ctr", "pipelines"):
        (tmp_path / package / "__init__.py").write_text("x = 1")
        assert hash_of_packages(tmp_path) != before
        (tmp_path / package / "__init__.py").write_text("")
    assert hash_of_packages(tmp_path) == before
