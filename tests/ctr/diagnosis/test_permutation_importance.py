"""Permutation importance: what is planted is found, what is not read is worth exactly nothing, all is put back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ctr.config import ModelConfig
from ctr.data.batch import Batch
from ctr.data.feature_tables import FrozenTables, frozen_tables
from ctr.data.loader import Loader
from ctr.diagnosis import permutation_importance as importance
from ctr.diagnosis.permutation_importance import Importance, permutation_importance
from ctr.evaluation.bootstrap import Interval
from ctr.training.loop import predict
from features.progress import silent
from features.store.feature_set import FeatureSet, read_arrow, write_arrow
from tests.toy import toy_feature_set
from tests.trained import random_model

NOTHING = Interval(0, 0, 0)


class Reads(nn.Module):
    """A model whose logit is what `read` says; it remembers what it was given."""

    def __init__(self, feature_set: FeatureSet, read: Callable[[FrozenTables, Batch], Tensor]) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self.read = read
        self.attached: list[FrozenTables] = []
        self.batches: list[Batch] = []
        self.attach(frozen_tables(feature_set))

    def attach(self, tables: FrozenTables) -> None:
        self.attached.append(tables)

    def forward(self, batch: Batch) -> Tensor:
        self.batches.append(batch)
        return self.read(self.attached[-1], batch)


def with_test_rows(folder: Path, change: Callable[[FeatureSet, dict[str, np.ndarray]], dict[str, np.ndarray]]):
    """The toy feature set, columns of its test rows replaced."""
    feature_set = toy_feature_set(folder)
    for path in sorted(folder.glob("rows/test/*.arrow")):
        columns = {name: values.copy() for name, values in read_arrow(path).items()}
        write_arrow(path, columns | change(feature_set, columns))
    return FeatureSet.open(folder)


def measured(model: nn.Module, feature_set: FeatureSet, seed: int = 0) -> dict[str, Importance]:
    found = permutation_importance(model, feature_set, "test", seed, silent)
    assert [one.drop.value for one in found] == sorted((one.drop.value for one in found), reverse=True)
    return {f"{one.side}.{one.name}": one for one in found}


def test_a_planted_row_column_is_worth_all_and_a_constant_one_nothing(tmp_path):
    def plant(_, columns):
        return {"load": columns["label"].astype(np.float32), "hour": np.full_like(columns["hour"], 3)}

    feature_set = with_test_rows(tmp_path, plant)
    model = Reads(feature_set, lambda _, batch: batch.context["load"] + 0.2 * batch.context["hour"])
    found = measured(model, feature_set)
    # The column is the label: AUC 1, and with the column in any other order near 1/2.
    load = found.pop("context.load").drop
    assert load.value == pytest.approx(0.5, abs=0.1) and load.low > 0.3
    assert found["context.hour"].drop == NOTHING
    assert all(one.drop == NOTHING for one in found.values())
    assert list(found) == [
        *("context.hour", "candidate.item_rate", "event.label", "event.residual", "history.history"),
        *("user.user_id", "user.segment", "item.item_id", "item.genre", "item.tags", "item.price"),
        *("vectors.text", "vectors.image"),
    ]


def test_a_planted_item_column_counts_for_the_target(tmp_path):
    def plant(feature_set, columns):
        return {"label": (feature_set.items["genre"][columns["item"]] >= 4).astype(np.float32)}

    feature_set = with_test_rows(tmp_path, plant)
    model = Reads(feature_set, lambda tables, batch: tables.items["genre"][batch.items_U[batch.target_B]].float())
    found = measured(model, feature_set)
    assert found.pop("item.genre").drop.low > 0.25
    assert all(one.drop == NOTHING for one in found.values())


def test_item_tables_are_shuffled_among_real_items_and_put_back(tmp_path):
    feature_set = toy_feature_set(tmp_path)
    whole = frozen_tables(feature_set)
    model = Reads(feature_set, lambda _, batch: batch.label_B)
    measured(model, feature_set)
    *_, image, last = model.attached
    moved = image.vectors["image"]
    assert not torch.equal(moved, whole.vectors["image"])
    assert torch.equal(moved[:2], whole.vectors["image"][:2])
    assert torch.equal(moved.sort(0).values, whole.vectors["image"].sort(0).values)
    # An item without a vector is still the one with zeros.
    assert torch.equal(image.present["image"], moved.abs().sum(1) > 0)
    assert image.vectors["text"] is last.vectors["text"]
    for side in ("items", "users", "vectors", "present"):
        for name, values in getattr(whole, side).items():
            assert torch.equal(getattr(last, side)[name].nan_to_num(), values.nan_to_num()), name


def test_events_stay_where_there_are_some_and_histories_move_whole(tmp_path):
    feature_set = toy_feature_set(tmp_path)
    model = Reads(feature_set, lambda _, batch: batch.label_B)
    measured(model, feature_set)
    whole, _hour, _load, _rate, label, _residual, history = model.batches[:7]
    there = whole.history_BS != 0
    assert torch.equal(label.history_BS, whole.history_BS)
    assert torch.equal(label.events["label"] != 0, there)
    assert not torch.equal(label.events["label"], whole.events["label"])
    assert torch.equal(label.events["label"].flatten().sort().values, whole.events["label"].flatten().sort().values)
    assert torch.equal(history.target_B, whole.target_B) and torch.equal(history.user_B, whole.user_B)

    def pasts(batch):
        return [tuple(row.tolist()) for row in torch.cat([batch.history_BS, batch.events["label"]], dim=1)]

    assert pasts(history) != pasts(whole) and sorted(pasts(history)) == sorted(pasts(whole))


def test_a_large_split_is_sampled_in_equal_batches_by_seed(tmp_path, monkeypatch):
    monkeypatch.setattr(importance, "MOST_ROWS", 90)
    monkeypatch.setattr(importance, "BATCH_ROWS", 50)
    feature_set = toy_feature_set(tmp_path)

    def sample(seed):
        model = Reads(feature_set, lambda _, batch: batch.candidate["item_rate"].nan_to_num())
        found = measured(model, feature_set, seed)
        assert [len(batch) for batch in model.batches[:2]] == [45, 45]
        return found

    assert sample(1) == sample(1) != sample(2)


def test_a_real_model_scores_as_before_and_does_not_need_what_it_does_not_read(tmp_path):
    feature_set = toy_feature_set(tmp_path)
    model = random_model(feature_set, ModelConfig(embedding_dim=4, vector_dim=4, attention_dim=8))
    before = predict(model, feature_set, "test")
    found = measured(model, feature_set)
    np.testing.assert_array_equal(predict(model, feature_set, "test"), before)
    assert found["user.user_id"].drop == NOTHING
    read = {one.side for one in found.values() if one.drop != NOTHING}
    assert read == {"context", "candidate", "event", "history", "user", "item", "vectors"}
    # The tables that are put back must be fit to train on.
    model.train()(next(Loader(feature_set, "train", 64).epoch(0))).sum().backward()
