"""A warm start over a grown vocabulary: every weight and moment where its raw value stands now."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ctr.config import ModelConfig, Preset, TrainConfig, WarmStartConfig
from ctr.data.feature_tables import frozen_tables
from ctr.evaluation.metrics import auc
from ctr.model.click_model import ClickModel
from ctr.training.checkpoint import RECORD
from ctr.training.loop import Evaluation, FitResult, fit, predict
from ctr.training.train_step import TrainStep
from ctr.training.warm.moves import crossed_pairs
from ctr.training.warm.parent import Parent
from ctr.training.warm.transfer import Began, begin_from, rows_to_train
from features.encoding.encoder import Encoder
from features.errors import ConfigError
from features.progress import silent
from features.store.feature_set import FeatureSet
from tests.grown import DAY, grown_feature_set, vector_of

CPU = torch.device("cpu")
MODEL = ModelConfig(
    embedding_dim=4, vector_dim=3, attention="sparse", attention_dim=4, layers=1, cross_cells=200, evidence_heads=2,
    use_user_id=True,
)  # fmt: skip
TRAIN = TrainConfig(batch_size=50, epochs=1, learning_rate=0.02, evaluations_per_epoch=2, patience=0, device="cpu")
ID, USER = "item_encoder.columns.tables.0.weight", "context_encoder.tables.0.weight"


@pytest.fixture(scope="module")
def days(tmp_path_factory: pytest.TempPathFactory) -> tuple[FeatureSet, FeatureSet]:
    folder = tmp_path_factory.mktemp("days")
    return grown_feature_set(folder, 1), grown_feature_set(folder, 2)


@pytest.fixture(scope="module")
def folder(days: tuple[FeatureSet, FeatureSet], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "monday"
    fit(fresh(days[0]), days[0], TRAIN, folder, progress=silent)
    return folder


@pytest.fixture(scope="module")
def parent(days: tuple[FeatureSet, FeatureSet], folder: Path) -> Parent:
    return Parent.read(folder, Preset(model=MODEL, train=TRAIN), days[0], generation=2)


def fresh(feature_set: FeatureSet, seed: int = 5) -> ClickModel:
    torch.manual_seed(seed)
    model = ClickModel(MODEL, feature_set.schema)
    model.attach(frozen_tables(feature_set))
    return model


def begun(parent: Parent, feature_set: FeatureSet, **settings: Any) -> tuple[ClickModel, TrainStep, Began]:
    model = fresh(feature_set)
    take_step = TrainStep(model, TRAIN, CPU)
    return model, take_step, begin_from(parent, model, take_step, feature_set, WarmStartConfig(**settings))


def by_value(feature_set: FeatureSet, side: str, column: str) -> dict[Any, int]:
    """Index of each raw value of a column."""
    values = getattr(Encoder.load(feature_set.path), side)[column].vocabulary.values.to_list()
    return {value: index for index, value in enumerate(values, 2)}


@pytest.mark.parametrize(
    ("name", "side", "column"),
    [
        (ID, "item", "item"),
        ("item_encoder.columns.tables.1.weight", "item", "genre"),
        ("item_encoder.columns.tables.2.weight", "item", "tags"),
        (USER, "user", "user"),
        ("context_encoder.tables.1.weight", "context", "device"),
        ("event_encoder.tables.0.weight", "event", "label"),
        ("evidence.tables.0.weight", "event", "label"),
    ],
)
def test_a_raw_value_keeps_its_row_to_the_bit_wherever_it_stands(days, parent, name, side, column):
    model, _, _ = begun(parent, days[1], new_rows="unknown")
    old, new = (by_value(one, side, column) for one in days)
    weight, before = model.state_dict()[name], parent.weights[name]
    assert old.keys() & new.keys()
    for value, index in new.items():
        assert torch.equal(weight[index], before[old.get(value, 1)]), value
    assert torch.equal(weight[:2], before[:2])


def test_the_indices_of_the_two_days_do_differ(days):
    """Else the test above shows nothing: every item has moved, and some of either day are not of the other."""
    old, new = (by_value(one, "item", "item") for one in days)
    assert all(old[value] != new[value] for value in old.keys() & new.keys())
    assert new.keys() - old.keys() and len(old.keys() & new.keys()) > 20


def test_what_depends_on_no_vocabulary_is_copied(days, parent):
    model, _, _ = begun(parent, days[1])
    dense = [n for n in parent.weights if n.startswith(("network.", "attention.")) or "projection" in n]
    assert len(dense) > 10
    assert all(torch.equal(model.state_dict()[name], parent.weights[name]) for name in dense)


def test_the_calibration_of_the_parent_is_not_taken_over(days, parent):
    tilted = replace(parent, weights=parent.weights | {"calibrator.slope": torch.tensor(3.0)})
    assert begun(tilted, days[1])[0].calibrator.slope.item() == 1.0


def test_a_pair_of_crossed_values_keeps_its_weight(days, parent):
    """Of a new value it begins with what the unknown value has; a pair that the parent did not cross, with 0."""
    crossed = {name: torch.randn_like(t) for name, t in parent.weights.items() if name.startswith("crosses")}
    parent = replace(parent, weights=parent.weights | crossed)
    model, _, _ = begun(parent, days[1])
    theirs, ours = ({pair: n for n, pair in crossed_pairs(one).items()} for one in (parent.model, model))
    both = ("context", "device", "genre")
    assert both in theirs and both in ours
    devices, genres = ([by_value(one, *what) for one in days] for what in (("context", "device"), ("item", "genre")))
    old = parent.weights[f"crosses.tables.{theirs[both]}.weight"].view(-1, len(genres[0]) + 2)
    new = model.state_dict()[f"crosses.tables.{ours[both]}.weight"].view(-1, len(genres[1]) + 2)
    for device, row in devices[1].items():
        for genre, place in genres[1].items():
            assert new[row, place] == old[devices[0].get(device, 1), genres[0].get(genre, 1)], (device, genre)
    assert "watch-2" not in devices[0] and "jazz" in genres[1]
    for pair in ours.keys() - theirs.keys():
        assert not model.state_dict()[f"crosses.tables.{ours[pair]}.weight"].any()


def test_new_items_begin_as_their_vectors_say_and_those_without_as_the_unknown_item(days, parent):
    model, _, began = begun(parent, days[1])
    old, new = (by_value(one, "item", "item") for one in days)
    weight, before = model.state_dict()[ID].double().numpy(), parent.weights[ID].double().numpy()
    # The last two items of a day have no vector.
    learned = [item for item in new.keys() & old.keys() if item < 140]
    vectors, rows = np.array([vector_of(item) for item in learned]), before[[old[item] for item in learned]]
    centred = vectors - vectors.mean(axis=0)
    products = centred.T @ centred
    solution = np.linalg.solve(
        products + 0.1 * np.trace(products) / 4 * np.eye(4), centred.T @ (rows - rows.mean(axis=0))
    )
    strangers = sorted(new.keys() - old.keys())
    with_vector = [item for item in strangers if item < 140]
    assert (began.new, began.from_content, began.known) == (len(strangers), len(with_vector), len(learned))
    for item in strangers:
        expected = rows.mean(axis=0) + (np.array(vector_of(item)) - vectors.mean(axis=0)) @ solution
        np.testing.assert_allclose(weight[new[item]], expected if item < 140 else before[1], atol=1e-6)


def moment(take_step: TrainStep, name: str, what: str) -> Tensor:
    return take_step.moments()[name][what]


@pytest.mark.parametrize(("accumulators", "factor"), [("keep", 1.0), ("decay", 0.5)])
def test_moments_go_with_their_rows_and_count_as_much_as_they_should(days, parent, accumulators, factor):
    _, take_step, began = begun(parent, days[1], accumulators=accumulators)
    old, new = (by_value(one, "item", "item") for one in days)
    assert began.moments and parent.moments is not None
    before = parent.moments[ID]
    known = sorted(new.keys() & old.keys())
    places, were = [new[item] for item in known], [old[item] for item in known]
    assert torch.equal(moment(take_step, ID, "exp_avg")[places], before["exp_avg"][were])
    assert torch.equal(moment(take_step, ID, "exp_avg_sq")[places], factor * before["exp_avg_sq"][were])
    strange = [new[item] for item in new.keys() - old.keys()]
    touched = before["exp_avg_sq"][2:][before["exp_avg_sq"][2:].any(dim=1)]
    assert not moment(take_step, ID, "exp_avg")[strange].any()
    expected = (factor * touched.mean(dim=0)).expand(len(strange), -1)
    torch.testing.assert_close(moment(take_step, ID, "exp_avg_sq")[strange], expected)
    dense = next(name for name in parent.moments if name.startswith("network."))
    assert torch.equal(moment(take_step, dense, "exp_avg_sq"), factor * parent.moments[dense]["exp_avg_sq"])
    assert moment(take_step, dense, "step") == parent.moments[dense]["step"] > 0


def test_new_rows_may_begin_without_second_moments(days, parent):
    _, take_step, _ = begun(parent, days[1], new_accumulators="zero")
    old, new = (by_value(one, "item", "item") for one in days)
    assert not moment(take_step, ID, "exp_avg_sq")[[new[item] for item in new.keys() - old.keys()]].any()


@pytest.mark.parametrize("gone", [{"accumulators": "reset"}, {}])
def test_moments_that_are_reset_or_gone_begin_anew(days, parent, gone):
    _, take_step, began = begun(parent if gone else replace(parent, moments=None), days[1], **gone)
    assert take_step.moments() == {} and not began.moments


@pytest.mark.parametrize("kind", ["lazy_adam", "rowwise_adagrad"])
def test_moments_by_row_go_along_too(days, tmp_path, kind, monkeypatch):
    monkeypatch.setattr("ctr.training.train_step.SMALL_TABLE_ROWS", 0)
    config = TRAIN.model_copy(update={"table_optimizer": kind})
    fit(fresh(days[0]), days[0], config, tmp_path, progress=silent)
    parent = Parent.read(tmp_path, Preset(model=MODEL, train=config), days[0])
    model = fresh(days[1])
    take_step = TrainStep(model, config, CPU)
    begin_from(parent, model, take_step, days[1], WarmStartConfig(new_accumulators="zero"))
    assert parent.moments is not None
    old, new = (by_value(one, "item", "item") for one in days)
    what = "sum" if kind == "rowwise_adagrad" else "exp_avg_sq"
    kept, before = moment(take_step, ID, what), parent.moments[ID][what]
    assert before[2:].any()
    for item, index in new.items():
        assert torch.equal(kept[index], before[old[item]] if item in old else torch.zeros_like(before[0]))
    assert moment(take_step, ID, "step") == parent.moments[ID]["step"]
    # Of another optimiser a table takes nothing, and begins anew.
    other = TRAIN.model_copy(update={"table_optimizer": {"lazy_adam": "rowwise_adagrad"}.get(kind, "lazy_adam")})
    take_step = TrainStep(fresh(days[1]), other, CPU)
    take_step.load_moments(parent.moments)
    assert not any(tensor.any() for tensor in take_step.moments()[ID].values())


def test_a_parent_whose_checkpoint_is_gone_has_no_moments(days, folder, tmp_path):
    for name in ("model.safetensors", "checkpoint.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    assert Parent.read(tmp_path, Preset(model=MODEL, train=TRAIN), days[0]).moments is None
    (tmp_path / "checkpoint.json").unlink()
    assert Parent.read(tmp_path, Preset(model=MODEL, train=TRAIN), days[0]).moments is None


def test_new_rows_are_trained_on_and_a_share_of_the_older_ones(days, parent):
    time = np.concatenate([part["time"] for part in days[1].rows("train")])
    newer = time > parent.newest
    none, half, every = (rows_to_train(days[1], parent.newest, share, seed=1) for share in (0.0, 0.5, 1.0))
    assert none.tolist() == np.flatnonzero(newer).tolist() and 0 < len(none) < len(time)
    assert every.tolist() == list(range(len(time)))
    replayed = ~newer[half]
    assert newer[half].sum() == newer.sum() and 0.35 < replayed.sum() / (~newer).sum() < 0.65
    assert half.tolist() == rows_to_train(days[1], parent.newest, 0.5, seed=1).tolist()
    assert half.tolist() != rows_to_train(days[1], parent.newest, 0.5, seed=2).tolist()
    assert (parent.newest // 1_000_000) // DAY == 1


def warm(days, folder: Path, parent: Parent, **call: Any) -> tuple[ClickModel, FitResult]:
    model = fresh(days[1], call.pop("seed", 5))
    over = call.pop("config", {})
    config = TRAIN.model_copy(
        update={"warm_start": WarmStartConfig(epochs=2, replay=0.5, rate=0.25, rewarm_steps=4)} | over
    )
    return model, fit(model, days[1], config, folder, progress=silent, warm=parent, **call)


def test_a_resumed_warm_start_ends_as_an_uninterrupted_one(days, parent, tmp_path):
    class Killed(BaseException):
        pass

    def killed(evaluation: Evaluation) -> None:
        if evaluation.epoch > 1:
            raise Killed

    whole, expected = warm(days, tmp_path / "whole", parent)
    with pytest.raises(Killed):
        warm(days, tmp_path / "broken", parent, on_evaluation=killed)
    rest, result = warm(days, tmp_path / "broken", parent, resume=True, seed=6)
    assert all(torch.equal(tensor, whole.state_dict()[name]) for name, tensor in rest.state_dict().items())
    assert [one.log_loss for one in result.curve] == pytest.approx([one.log_loss for one in expected.curve])
    assert expected.epochs_run == 2.0


def test_a_warm_start_is_not_resumed_on_other_rows(days, parent, tmp_path):
    """Another share of the older rows is another run; a checkpoint from before it was recorded says nothing of it."""

    def killed(evaluation: Evaluation) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        warm(days, tmp_path, parent, on_evaluation=killed)
    other = {"warm_start": WarmStartConfig(epochs=2, replay=0.9, rate=0.25, rewarm_steps=4)}
    with pytest.raises(ConfigError, match=r"the checkpoint has replay = 0\.5, this run has 0\.9"):
        warm(days, tmp_path, parent, resume=True, config=other)
    record = json.loads((tmp_path / RECORD).read_text())
    assert record["identity"].pop("replay") == 0.5
    (tmp_path / RECORD).write_text(json.dumps(record))
    _, result = warm(days, tmp_path, parent, resume=True)
    assert len(result.curve) > 1


def test_a_warm_start_knows_something_before_its_first_step(days, parent):
    labels = np.concatenate([part["label"] for part in days[1].rows("valid")])
    known, unknown = begun(parent, days[1])[0], fresh(days[1])
    aucs = [auc(labels, predict(model, days[1], "valid")) for model in (known, unknown)]
    assert aucs[0] > 0.65 > aucs[1] + 0.05, aucs


def test_the_rate_rises_to_its_share_over_the_first_steps(days, parent, tmp_path):
    constant = {"schedule": "constant", "evaluations_per_epoch": 8}
    _, result = warm(days, tmp_path, parent, config=constant)
    rates = {one.step: one.learning_rate for one in result.curve}
    assert all(rate == pytest.approx(0.02 * 0.25 * min(1.0, step / 4)) for step, rate in rates.items())
    assert min(rates) < 4


def test_the_rows_of_a_small_day_are_one_batch(days, parent, tmp_path):
    _, result = warm(days, tmp_path, parent, config={"batch_size": 5_000, "evaluations_per_epoch": 1})
    assert [one.step for one in result.curve] == [1, 2]


def test_a_window_without_newer_rows_is_refused(days, parent, tmp_path):
    model, nothing = fresh(days[0]), WarmStartConfig(replay=0.0)
    config = TRAIN.model_copy(update={"warm_start": nothing})
    with pytest.raises(ConfigError, match=r"0 rows of the training window are newer than those of run monday"):
        fit(model, days[0], config, tmp_path, progress=silent, warm=parent)


def test_a_checkpoint_that_was_changed_is_refused(days, folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    record = json.loads((tmp_path / "checkpoint.json").read_text())
    record["sha256"] = "0" * 64
    (tmp_path / "checkpoint.json").write_text(json.dumps(record))
    with pytest.raises(Exception, match="changed since the checkpoint was written"):
        Parent.read(tmp_path, Preset(model=MODEL, train=TRAIN), days[0])
