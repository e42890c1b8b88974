"""Checkpoints between evaluations: when they are due, the thread that writes them, and runs that go on from them."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ctr.training.loop
from ctr.config import CheckpointConfig, TrainConfig
from ctr.training.checkpoint import CheckpointStore, Snapshot
from ctr.training.checkpoint_writer import CheckpointWriter, Schedule
from ctr.training.loop import Evaluation, FitResult, fit
from features.progress import silent
from features.stopping import Stopped, listening
from features.store.feature_set import FeatureSet
from tests.ctr.tiny import tiny_model
from tests.toy import toy_feature_set
from tests.trained import at_step

# 13 steps an epoch, evaluations after steps 5, 9, 13, 18, 22 and 26.
CONFIG = TrainConfig(
    batch_size=64,
    epochs=2,
    learning_rate=0.02,
    evaluations_per_epoch=3,
    patience=0,
    metric="auc",
    device="cpu",
    checkpoint=CheckpointConfig(steps=2, minutes=0),
)


class Killed(BaseException):
    """Stands for the signal that ends a process."""


@pytest.fixture(scope="module")
def feature_set(tmp_path_factory: pytest.TempPathFactory) -> FeatureSet:
    return toy_feature_set(tmp_path_factory.mktemp("toy"), rows=1000, users=40)


@pytest.fixture(scope="module")
def whole(feature_set: FeatureSet, tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, FitResult]:
    """A run that nothing interrupts."""
    model = tiny_model(feature_set)
    return model, train(model, feature_set, tmp_path_factory.mktemp("whole"))


@pytest.fixture
def every(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each checkpoint that is due is written: the run waits for the thread instead of leaving one out."""
    monkeypatch.setattr(CheckpointWriter, "busy", False)


def train(model: nn.Module, feature_set: FeatureSet, folder: Path, **changed: Any) -> FitResult:
    call = {name: changed.pop(name) for name in ("on_evaluation", "resume") if name in changed}
    return fit(model, feature_set, CONFIG.model_copy(update=changed), folder, progress=silent, **call)


def same(one: nn.Module, other: nn.Module) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in one.state_dict().items())


def numbers(curve: list[Evaluation]) -> list[dict[str, float]]:
    return [{name: round(value, 9) for name, value in look.model_dump(exclude_none=True).items()} for look in curve]


def killed() -> None:
    raise Killed


def saved_step(folder: Path) -> int:
    return int(json.loads((folder / "checkpoint.json").read_text())["state"]["step"])


@pytest.mark.parametrize(("step", "saved"), [(3, 2), (8, 7), (12, 11), (14, 13), (25, 24)])
def test_a_kill_between_evaluations_loses_what_came_after_the_last_checkpoint(
    feature_set, whole, tmp_path, monkeypatch, every, step, saved
):
    """Checkpoints every second step, counted anew from each evaluation; dropout is on."""
    at_step(monkeypatch, step, killed)
    with pytest.raises(Killed):
        train(tiny_model(feature_set), feature_set, tmp_path)
    assert saved_step(tmp_path) == saved
    monkeypatch.undo()
    restarted = tiny_model(feature_set, seed=99)
    result = train(restarted, feature_set, tmp_path, resume=True)
    assert same(whole[0], restarted)
    assert numbers(result.curve) == numbers(whole[1].curve)


@pytest.mark.parametrize(
    "changed",
    [{"table_optimizer": "rowwise_adagrad"}, {"reset_embeddings": True}, {"accumulate": 2}],
    ids=lambda changed: next(iter(changed)),
)
def test_every_way_of_training_goes_on_from_the_middle_to_the_bit(feature_set, tmp_path, monkeypatch, every, changed):
    monkeypatch.setattr("ctr.training.train_step.SMALL_TABLE_ROWS", 0)
    changed = {**changed, "checkpoint": CheckpointConfig(steps=1, minutes=0)}
    model = tiny_model(feature_set)
    expected = train(model, feature_set, tmp_path / "whole", **changed)
    with monkeypatch.context() as patch:
        at_step(patch, 11, killed)
        with pytest.raises(Killed):
            train(tiny_model(feature_set), feature_set, tmp_path / "broken", **changed)
    assert saved_step(tmp_path / "broken") == 11
    assert 11 not in [look.step for look in expected.curve], "there it would have been saved in any case"
    restarted = tiny_model(feature_set, seed=99)
    result = train(restarted, feature_set, tmp_path / "broken", resume=True, **changed)
    assert same(model, restarted)
    assert numbers(result.curve) == numbers(expected.curve)


def test_checkpoints_do_not_change_what_is_trained(feature_set, whole, tmp_path):
    model = tiny_model(feature_set)
    train(model, feature_set, tmp_path, checkpoint=CheckpointConfig(steps=0, minutes=0))
    assert same(model, whole[0])


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, Stopped), (signal.SIGINT, KeyboardInterrupt)])
def test_a_signal_ends_a_run_after_the_step_in_hand(feature_set, whole, tmp_path, monkeypatch, number, error):
    """The signal comes in the step from 6 to 7."""
    at_step(monkeypatch, 6, lambda: os.kill(os.getpid(), number))
    with listening(killed), pytest.raises(error):
        train(tiny_model(feature_set), feature_set, tmp_path, checkpoint=CheckpointConfig(steps=0, minutes=0))
    assert saved_step(tmp_path) == 7
    monkeypatch.undo()
    restarted = tiny_model(feature_set, seed=99)
    result = train(restarted, feature_set, tmp_path, resume=True)
    assert same(whole[0], restarted)
    assert numbers(result.curve) == numbers(whole[1].curve)


def test_a_signal_in_an_evaluation_saves_before_it_and_the_next_process_makes_it(
    feature_set, whole, tmp_path, monkeypatch
):
    scored, evaluations = ctr.training.loop._score, []

    def interrupted(model: nn.Module, loader: Any, device: Any, stop: Any) -> Any:
        evaluations.append(stop)
        if len(evaluations) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return scored(model, loader, device, stop)

    monkeypatch.setattr(ctr.training.loop, "_score", interrupted)
    with listening(killed), pytest.raises(Stopped):
        train(tiny_model(feature_set), feature_set, tmp_path, checkpoint=CheckpointConfig(steps=0, minutes=0))
    state = json.loads((tmp_path / "checkpoint.json").read_text())["state"]
    assert state["step"] == 9 and [look["step"] for look in state["curve"]] == [5]
    monkeypatch.undo()
    restarted = tiny_model(feature_set, seed=99)
    result = train(restarted, feature_set, tmp_path, resume=True)
    assert same(whole[0], restarted)
    assert numbers(result.curve) == numbers(whole[1].curve)


def test_what_cannot_be_written_ends_the_run(feature_set, tmp_path, monkeypatch):
    def full(store: CheckpointStore, snapshot: Snapshot) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(CheckpointStore, "write", full)
    with pytest.raises(OSError, match="No space left"):
        train(tiny_model(feature_set), feature_set, tmp_path)


def test_training_goes_on_while_a_checkpoint_is_written(feature_set, tmp_path, monkeypatch):
    """The write that began at step 2 ends when step 4 is done; what was due meanwhile is left out."""
    write, released, written = CheckpointStore.write, threading.Event(), []

    def slow(store: CheckpointStore, snapshot: Snapshot) -> None:
        assert released.wait(60)
        written.append(snapshot.state.step)
        write(store, snapshot)

    monkeypatch.setattr(CheckpointStore, "write", slow)
    at_step(monkeypatch, 4, released.set)
    train(tiny_model(feature_set), feature_set, tmp_path, epochs=1)
    assert written[0] == 2 and 4 not in written and {5, 9, 13} <= set(written)


def test_halves_that_a_kill_left_are_removed(feature_set, tmp_path):
    for name in (".checkpoint-3.safetensors-ab12cd34", ".best-3.safetensors-ab12cd34", ".curve.jsonl-ab12cd34"):
        (tmp_path / name).touch()
    (tmp_path / ".lock").touch()
    train(tiny_model(feature_set), feature_set, tmp_path, resume=True, epochs=1)
    assert [path.name for path in tmp_path.glob(".*")] == [".lock"]


def due_at(config: CheckpointConfig, moments: dict[int, float]) -> list[int]:
    """Steps after which a run is saved, by the seconds at which it reaches them."""
    now = 0.0
    schedule, found = Schedule(config, 0, lambda: now), []
    for step, moment in moments.items():
        now = moment
        if schedule.due(step):
            found.append(step)
            schedule.saved(step)
    return found


MOMENTS = {1: 10.0, 2: 61.0, 3: 62.0, 4: 120.0, 5: 121.0, 6: 121.5}


@pytest.mark.parametrize(
    ("steps", "minutes", "expected"),
    [(0, 0, []), (2, 0, [2, 4, 6]), (0, 1, [2, 5]), (3, 1, [2, 5]), (2, 1, [2, 4, 6]), (1, 0, [1, 2, 3, 4, 5, 6])],
)
def test_a_checkpoint_is_due_after_so_many_steps_or_minutes(steps, minutes, expected):
    assert due_at(CheckpointConfig(steps=steps, minutes=minutes), MOMENTS) == expected
