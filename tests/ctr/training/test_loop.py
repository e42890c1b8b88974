"""The training loop: resuming to the bit, stopping for the right reason, refusing what is not a number."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from ctr.config import ModelConfig, TrainConfig
from ctr.data.batch import Batch
from ctr.data.feature_tables import frozen_tables
from ctr.data.loader import Loader
from ctr.evaluation.metrics import auc
from ctr.model.click_model import ClickModel
from ctr.training.loop import Evaluation, FitResult, StopTraining, fit, predict
from ctr.training.optimizer import learning_rate, make_optimizer
from features.errors import ConfigError, DataError
from features.progress import silent
from features.store.feature_set import FeatureSet, read_arrow, write_arrow
from tests.ctr.tiny import tiny_model
from tests.listed import built_lists
from tests.toy import toy_feature_set

CONFIG = TrainConfig(
    batch_size=64,
    epochs=2,
    learning_rate=0.02,
    evaluations_per_epoch=3,
    patience=0,
    metric="auc",
    device="cpu",
)


@pytest.fixture(scope="module")
def feature_set(tmp_path_factory: pytest.TempPathFactory) -> FeatureSet:
    return toy_feature_set(tmp_path_factory.mktemp("toy"), rows=1000, users=40)


def train(model: nn.Module, feature_set: FeatureSet, folder: Path, **changed: Any) -> FitResult:
    call = {name: changed.pop(name) for name in ("on_evaluation", "resume") if name in changed}
    return fit(model, feature_set, CONFIG.model_copy(update=changed), folder, progress=silent, **call)


def same(one: nn.Module, other: nn.Module) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in one.state_dict().items())


def numbers(curve: list[Evaluation]) -> list[dict[str, float]]:
    """The looks to nine digits: GAUC adds its groups in an unspecified order."""
    return [{name: round(value, 9) for name, value in look.model_dump(exclude_none=True).items()} for look in curve]


class Killed(BaseException):
    """Stands for the signal that ends a process."""


def killed_at(look: int):
    looks = iter(range(1, look + 1))

    def callback(evaluation: Evaluation) -> None:
        if next(looks) == look:
            raise Killed

    return callback


@pytest.mark.parametrize("schedule", ["plateau", "cosine"])
@pytest.mark.parametrize("look", [1, 3, 4])
def test_a_killed_and_resumed_run_ends_as_an_uninterrupted_one(feature_set, tmp_path, look, schedule):
    """Look 3 is the end of the first epoch; look 1 and 4 lie in the middle of one. Dropout is on."""
    whole, broken = tiny_model(feature_set), tiny_model(feature_set)
    expected = train(whole, feature_set, tmp_path / "whole", schedule=schedule)
    with pytest.raises(Killed):
        train(broken, feature_set, tmp_path / "broken", schedule=schedule, on_evaluation=killed_at(look))
    restarted = tiny_model(feature_set, seed=99)
    result = train(restarted, feature_set, tmp_path / "broken", schedule=schedule, resume=True)
    assert numbers(result.curve) == numbers(expected.curve) and len(result.curve) == 6
    assert result.best["auc"] == expected.best["auc"]
    assert same(whole, restarted)
    for name in ("model.safetensors", "checkpoint-26.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "broken" / name).read_bytes(), name


@pytest.mark.parametrize(
    "changed",
    [{"table_optimizer": "rowwise_adagrad"}, {"reset_embeddings": True}, {"accumulate": 2}, {"precision": "bf16"}],
    ids=lambda changed: next(iter(changed)),
)
@pytest.mark.parametrize("look", [1, 3])
def test_a_run_resumes_to_the_bit_in_every_way_of_training(feature_set, tmp_path, look, changed, monkeypatch):
    monkeypatch.setattr("ctr.training.train_step.SMALL_TABLE_ROWS", 0)
    whole, broken = tiny_model(feature_set), tiny_model(feature_set)
    expected = train(whole, feature_set, tmp_path / "whole", **changed)
    with pytest.raises(Killed):
        train(broken, feature_set, tmp_path / "broken", on_evaluation=killed_at(look), **changed)
    restarted = tiny_model(feature_set, seed=99)
    result = train(restarted, feature_set, tmp_path / "broken", resume=True, **changed)
    assert same(whole, restarted)
    assert numbers(result.curve) == numbers(expected.curve)
    plain = train(tiny_model(feature_set), feature_set, tmp_path / "plain")
    assert numbers(plain.curve) != numbers(expected.curve)


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> FeatureSet:
    return built_lists(tmp_path_factory.mktemp("lists"))


@pytest.mark.parametrize("changed", [{}, {"precision": "bf16", "accumulate": 2}], ids=str)
def test_a_run_with_a_loss_of_lists_resumes_to_the_bit(lists, tmp_path, changed):
    changed = {"list_loss": 0.3, "batch_size": 32, **changed}
    whole, broken = tiny_model(lists), tiny_model(lists)
    expected = train(whole, lists, tmp_path / "whole", **changed)
    with pytest.raises(Killed):
        train(broken, lists, tmp_path / "broken", on_evaluation=killed_at(4), **changed)
    restarted = tiny_model(lists, seed=99)
    train(restarted, lists, tmp_path / "broken", resume=True, **changed)
    assert same(whole, restarted)
    assert all(look.train_loss > look.train_click_loss for look in expected.curve)


def test_without_a_loss_of_lists_nothing_of_it_runs(lists, tmp_path, monkeypatch):
    """Rows come as they do where there are no requests, and no term is added."""

    def never(*args: Any) -> Any:
        raise AssertionError("of lists")

    with_lists = tiny_model(lists)
    train(with_lists, lists, tmp_path / "lists", list_loss=1e-30, batch_size=32)
    for name in (
        "ctr.training.losses.list_loss",
        "ctr.data.loader.list_numbers",
        "ctr.data.epoch_sampler._by_drawn_list",
    ):
        monkeypatch.setattr(name, never)
    without = tiny_model(lists)
    result = train(without, lists, tmp_path / "none", list_loss=0, batch_size=32)
    assert all(look.train_loss == look.train_click_loss for look in result.curve)
    assert not same(with_lists, without)


def test_a_loss_of_lists_without_requests_says_the_way_out(feature_set, tmp_path):
    with pytest.raises(
        ConfigError, match=r"train.list_loss 0.1: .* 'toy' has no interactions.request. Name the column"
    ):
        train(tiny_model(feature_set), feature_set, tmp_path, list_loss=0.1)


def test_a_run_by_rows_is_not_resumed_by_request(lists, tmp_path):
    with pytest.raises(Killed):
        train(tiny_model(lists), lists, tmp_path, batch_size=32, on_evaluation=killed_at(1))
    with pytest.raises(ConfigError, match="checkpoint has list_loss = False, this run has True"):
        train(tiny_model(lists), lists, tmp_path, batch_size=32, list_loss=0.1, resume=True)


QIN_PLUS = {
    "attention": "none",
    "evidence_heads": 3,
    "match_features": True,
    "vector_gate": True,
    "cross_cells": 400,
    "embedding_dim": 4,
    "vector_dim": 4,
}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("settings", [QIN_PLUS, {"attention": "transformer", "attention_dim": 8, "embedding_dim": 4}])
def test_readers_of_the_history_resume_to_the_bit(feature_set, tmp_path, settings, precision):
    def new(seed: int) -> ClickModel:
        torch.manual_seed(seed)
        model = ClickModel(ModelConfig(**settings), feature_set.schema)
        model.attach(frozen_tables(feature_set))
        return model

    changed = {"precision": precision, "epochs": 1, "table_optimizer": "lazy_adam"}
    whole, restarted = new(1), new(2)
    train(whole, feature_set, tmp_path / "whole", **changed)
    with pytest.raises(Killed):
        train(new(1), feature_set, tmp_path / "broken", on_evaluation=killed_at(2), **changed)
    train(restarted, feature_set, tmp_path / "broken", resume=True, **changed)
    assert same(whole, restarted)


@pytest.mark.parametrize("does", ["fit", "predict"])
def test_rows_that_do_not_fit_are_refused_before_a_kernel_reads_them(feature_set, tmp_path, monkeypatch, does):
    epoch = Loader.epoch

    def damaged(*args: Any) -> Generator[Batch, None, None]:
        for batch in epoch(*args):
            yield replace(batch, history_BS=batch.history_BS + len(batch.items_U))

    monkeypatch.setattr(Loader, "epoch", damaged)
    with pytest.raises(DataError, match="history_BS: indices outside"):
        if does == "fit":
            train(tiny_model(feature_set), feature_set, tmp_path)
        else:
            predict(tiny_model(feature_set), feature_set, "test")


def test_accumulation_keeps_the_last_window_of_an_epoch(feature_set, tmp_path):
    """13 batches, four a step: three whole windows and one of a single batch, all rows in each epoch."""
    result = train(tiny_model(feature_set), feature_set, tmp_path, accumulate=4, evaluations_per_epoch=2)
    assert [look.step for look in result.curve] == [2, 4, 6, 8]
    assert [look.epoch for look in result.curve] == [0.5, 1.0, 1.5, 2.0]
    assert result.epochs_run == 2


def test_a_run_of_another_table_optimizer_is_not_resumed(feature_set, tmp_path):
    train(tiny_model(feature_set), feature_set, tmp_path)
    with pytest.raises(ConfigError, match="table_optimizer = 'adam', this run has 'lazy_adam'"):
        train(tiny_model(feature_set), feature_set, tmp_path, resume=True, epochs=3, table_optimizer="lazy_adam")


def test_resuming_without_a_checkpoint_starts_and_with_a_finished_run_only_loads(feature_set, tmp_path):
    model = tiny_model(feature_set)
    first = train(model, feature_set, tmp_path, resume=True)
    again = tiny_model(feature_set, seed=99)
    second = train(again, feature_set, tmp_path, resume=True)
    assert first.rows_per_second > 0 and second.rows_per_second == 0
    assert second.curve == first.curve
    assert same(model, again)


def test_a_finished_run_can_go_on_for_more_epochs(feature_set, tmp_path):
    longer = tiny_model(feature_set)
    expected = train(longer, feature_set, tmp_path / "longer", epochs=3)
    train(tiny_model(feature_set), feature_set, tmp_path / "two", epochs=2)
    model = tiny_model(feature_set, seed=99)
    result = train(model, feature_set, tmp_path / "two", epochs=3, resume=True)
    assert numbers(result.curve) == numbers(expected.curve)
    assert same(longer, model)


def test_the_model_ends_with_the_weights_of_the_best_look(feature_set, tmp_path, monkeypatch):
    found = iter([0.5, 0.6, 0.8, 0.7, 0.79, 0.6])
    monkeypatch.setattr("ctr.evaluation.watched.auc", lambda labels, scores, weights: next(found))
    model, states = tiny_model(feature_set), []

    def keep(look: Evaluation) -> None:
        states.append({name: tensor.clone() for name, tensor in model.state_dict().items()})

    result = train(model, feature_set, tmp_path, on_evaluation=keep)
    assert result.best == result.curve[2].metrics() and result.best["auc"] == 0.8
    ends_as = [torch.equal(model.item.weight, state["item.weight"]) for state in states]
    assert ends_as == [False, False, True, False, False, False]
    saved = load_file(tmp_path / "model.safetensors")
    assert set(saved) == set(states[2])
    assert all(torch.equal(saved[name], tensor) for name, tensor in states[2].items())


def test_looks_are_spread_over_the_epoch_and_written_down(feature_set, tmp_path):
    """800 training rows in batches of 64 are 13 a epoch: looks after batches ceil(13/3), ceil(26/3), 13."""
    assert feature_set.manifest.windows["train"].rows == pytest.approx(800, abs=30)
    seen: list[Evaluation] = []
    result = train(tiny_model(feature_set), feature_set, tmp_path, on_evaluation=seen.append)
    assert [look.step for look in seen] == [5, 9, 13, 18, 22, 26]
    assert result.curve == seen and result.epochs_run == 2
    lines = [json.loads(line) for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    assert [Evaluation(**line) for line in lines] == seen
    assert set(seen[0].metrics()) == {
        "auc",
        "log_loss",
        "gauc_by_samples",
        "train_loss",
        "train_click_loss",
        "learning_rate",
    }
    # The mean over steps, not their sum; and it falls.
    assert 0.4 < seen[0].train_loss < 1.2 and seen[-1].train_loss < seen[0].train_loss


def test_early_stopping_after_patience_looks(feature_set, tmp_path):
    result = train(tiny_model(feature_set), feature_set, tmp_path, epochs=50, learning_rate=0.2, patience=2)
    values = [look.auc for look in result.curve]
    assert result.stopped_early and not result.stopped_by_callback
    assert len(values) - 1 - values.index(max(values)) == 2
    assert result.epochs_run < 50


def test_a_plateau_halves_the_learning_rate(feature_set, tmp_path):
    curve = train(tiny_model(feature_set), feature_set, tmp_path, epochs=6, learning_rate=0.2).curve
    best, since, rate = -1.0, 0, 0.2
    for look in curve:
        assert look.learning_rate == pytest.approx(rate)
        since = 0 if look.auc > best else since + 1
        best = max(best, look.auc)
        if since and since % 2 == 0:
            rate /= 2
    assert rate < 0.2, "the run should reach a plateau, or this test shows nothing"


def test_a_callback_can_stop_training(feature_set, tmp_path):
    def stop(look: Evaluation) -> None:
        if look.step >= 9:
            raise StopTraining("pruned")

    result = train(tiny_model(feature_set), feature_set, tmp_path, on_evaluation=stop)
    assert result.stopped_by_callback and not result.stopped_early
    assert [look.step for look in result.curve] == [5, 9]
    assert (tmp_path / "model.safetensors").is_file()


def test_no_background_thread_is_left(feature_set, tmp_path):
    before = set(threading.enumerate())
    with pytest.raises(Killed):
        train(tiny_model(feature_set), feature_set, tmp_path, on_evaluation=killed_at(1))
    assert not set(threading.enumerate()) - before


def test_l2_reaches_the_embeddings_alone(feature_set):
    """With no gradient from a loss, Adam sees g = λ w there, and 0 elsewhere."""
    model = tiny_model(feature_set)
    config = TrainConfig(learning_rate=0.01, embedding_l2=0.1)
    optimizer = make_optimizer(model, config, list(model.parameters()))
    before = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    weight = before["item.weight"]
    # Adam's first step: learning rate times g / (|g| + eps), bias correction cancelling.
    gradient = 0.1 * weight
    expected = weight - 0.01 * gradient / (gradient.abs() + 1e-8)
    torch.testing.assert_close(model.item.weight.detach(), expected)
    others = {name: tensor for name, tensor in model.named_parameters() if name != "item.weight"}
    assert others and all(torch.equal(tensor, before[name]) for name, tensor in others.items())


def test_learning_rate_schedules():
    def rates(schedule: str, halvings: int = 0) -> list[float]:
        config = TrainConfig(learning_rate=0.4, schedule=schedule)
        return [learning_rate(config, step, 4, halvings) for step in (0, 2, 4)]

    assert rates("constant", halvings=3) == [0.4, 0.4, 0.4]
    assert rates("plateau", halvings=3) == [0.05, 0.05, 0.05]
    assert rates("cosine") == pytest.approx([0.4, 0.2, 0.0])


@pytest.mark.parametrize("batch_size", [1, 100_000])
def test_impossible_batch_sizes_say_the_way_out(feature_set, tmp_path, batch_size):
    rows = feature_set.manifest.windows["train"].rows
    with pytest.raises(ConfigError, match=f"train.batch_size between 2 and {rows:,}.*Got {batch_size:,}"):
        train(tiny_model(feature_set), feature_set, tmp_path, batch_size=batch_size)


def test_a_lone_last_row_is_left_out_instead_of_failing(feature_set, tmp_path):
    rows = feature_set.manifest.windows["train"].rows
    result = train(tiny_model(feature_set), feature_set, tmp_path, batch_size=rows - 1, epochs=2)
    assert [look.step for look in result.curve] == [1, 2]


def test_cuda_that_is_not_there_says_the_way_out(feature_set, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"train\.device cuda"):
        train(tiny_model(feature_set), feature_set, tmp_path, device="cuda")


def test_a_metric_that_the_validation_rows_do_not_define_is_refused_before_training(tmp_path):
    one_sided = toy_feature_set(tmp_path / "features", rows=400, users=20, parts=2)
    for part in range(2):
        path = one_sided.path / f"rows/valid/part-{part:05d}.arrow"
        columns = {name: values.copy() for name, values in read_arrow(path).items()}
        # Both labels among the rows, one label a user.
        columns["label"][:] = columns["user"] % 3 == 0
        path.unlink()
        write_arrow(path, columns)
    with pytest.raises(DataError, match=r"train\.metric gauc_by_samples: none of the \d+ users .* auc, or widen"):
        train(tiny_model(one_sided), one_sided, tmp_path / "run", metric="gauc_by_samples")
    assert not (tmp_path / "run").exists()
    result = train(tiny_model(one_sided), one_sided, tmp_path / "run", metric="log_loss", epochs=1)
    assert math.isnan(result.best["gauc_by_samples"])


def test_users_of_both_labels_can_be_what_early_stopping_watches(feature_set, tmp_path):
    result = train(tiny_model(feature_set), feature_set, tmp_path, metric="gauc_by_samples", epochs=1)
    assert result.best["gauc_by_samples"] == max(look.gauc_by_samples for look in result.curve)


def test_requests_can_be_what_early_stopping_watches(lists, tmp_path):
    result = train(tiny_model(lists), lists, tmp_path, metric="group_auc", batch_size=32, epochs=3)
    within, overall = ([getattr(look, name) for look in result.curve] for name in ("group_auc", "auc"))
    assert result.best["group_auc"] == max(within)
    assert within != overall


def test_requests_that_no_log_names_are_refused_before_training(feature_set, tmp_path):
    with pytest.raises(DataError, match=r"train\.metric group_auc: the log does not name the request"):
        train(tiny_model(feature_set), feature_set, tmp_path / "run", metric="group_auc")
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_overwritten(feature_set, tmp_path):
    train(tiny_model(feature_set), feature_set, tmp_path, epochs=1)
    with pytest.raises(ConfigError, match="a run has been here"):
        train(tiny_model(feature_set), feature_set, tmp_path, epochs=1)


def test_predict_gives_probabilities_in_stored_row_order(feature_set):
    model = tiny_model(feature_set)
    whole = predict(model, feature_set, "test")
    assert whole.dtype == np.float32 and len(whole) == feature_set.manifest.windows["test"].rows
    assert whole.min() > 0 and whole.max() < 1
    np.testing.assert_allclose(predict(model, feature_set, "test", batch_size=7), whole, atol=1e-6)
    # Genre alone decides where there is no history: those rows tie with each other, by genre.
    rows = {n: np.concatenate([part[n] for part in feature_set.rows("train")]) for n in ("item", "history_len")}
    scores = predict(model, feature_set, "train")
    first = rows["history_len"] == 0
    for genre in range(2, 6):
        chosen = scores[first & (feature_set.items["genre"][rows["item"]] == genre)]
        assert len(chosen) and np.ptp(chosen) < 1e-6


def test_qin_learns_the_toy_world(tmp_path):
    """A perfect model would reach about 0.8, one without skill 0.5."""
    feature_set = toy_feature_set(tmp_path / "features", rows=6000, users=200)
    torch.manual_seed(1)
    model = ClickModel(ModelConfig(embedding_dim=8, attention_dim=16), feature_set.schema)
    model.attach(frozen_tables(feature_set))
    config = TrainConfig(batch_size=128, epochs=6, learning_rate=3e-3, metric="auc", device="cpu", patience=0)
    result = fit(model, feature_set, config, tmp_path / "run", progress=silent)
    assert result.best["auc"] > 0.6
    test = np.concatenate([part["label"] for part in feature_set.rows("test")])
    assert auc(test, predict(model, feature_set, "test")) > 0.6


def test_plain_lines_tell_where_the_run_is(feature_set, tmp_path, capsys):
    fit(tiny_model(feature_set), feature_set, CONFIG.model_copy(update={"epochs": 1}), tmp_path)
    rows = feature_set.manifest.windows["train"].rows
    out, err = capsys.readouterr()
    assert out == ""
    assert f"training: {rows:,} / {rows:,} rows" in err and "epoch 1.00, auc 0." in err
