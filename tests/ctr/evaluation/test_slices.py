from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from ctr.evaluation.bootstrap import auc_interval
from ctr.evaluation.slices import popularity_tiers, slice_metrics, slices, training_counts
from features.store.schema import UNKNOWN
from tests.toy import toy_feature_set


@pytest.fixture(scope="module")
def feature_set(tmp_path_factory):
    return toy_feature_set(tmp_path_factory.mktemp("toy") / "toy")


def column(feature_set, split: str, name: str) -> np.ndarray:
    return np.concatenate([part[name] for part in feature_set.rows(split)])


def test_popularity_tiers_by_hand():
    # 100 clicks: before the items stand 0, 40, 70, 85 and 95 of them; an item without a click is tail.
    assert popularity_tiers(np.array([15.0, 40, 30, 0, 10, 5])).tolist() == [1, 0, 0, 2, 1, 2]
    assert popularity_tiers(np.array([90.0, 10])).tolist() == [0, 2]


def test_popularity_tiers_of_small_weights_are_those_of_large_ones():
    # Weights that sum to 1 over all rows, as some logs have them.
    clicks_I = np.array([15.0, 40, 30, 0, 10, 5])
    assert popularity_tiers(clicks_I / 1000).tolist() == popularity_tiers(clicks_I).tolist()
    assert popularity_tiers(np.zeros(3)).tolist() == [2, 2, 2]


def test_training_counts_are_those_of_the_rows_and_leave_out_the_unknown_item(feature_set):
    rows_I, clicks_I = training_counts(feature_set)
    item, label = column(feature_set, "train", "item"), column(feature_set, "train", "label")
    weight = column(feature_set, "train", "weight")
    assert (rows_I[7], clicks_I[7]) == (weight[item == 7].sum(), (weight * label)[item == 7].sum())
    assert rows_I.sum() == weight.sum()
    unknown = SimpleNamespace(
        schema=feature_set.schema,
        rows=lambda _: [{"item": np.array([1, 1, 4]), "label": np.ones(3)}],
    )
    assert training_counts(unknown)[0].sum() == training_counts(unknown)[1].sum() == 1


def test_each_dimension_parts_the_rows(feature_set):
    by_dimension: dict[str, np.ndarray] = {}
    for one in slices(feature_set, "test"):
        assert one.rows_N.any()
        by_dimension[one.dimension] = by_dimension.get(one.dimension, 0) + one.rows_N.astype(int)
    expected = {
        "new items",
        "item popularity",
        "history length",
        "text vector",
        "image vector",
        "user",
        "user in feature set",
        "day",
    }
    assert set(by_dimension) == expected
    for name, times in by_dimension.items():
        assert (times == 1).all(), name


def test_new_items_are_those_that_training_did_not_show(feature_set):
    found = {(one.dimension, one.name): one.rows_N for one in slices(feature_set, "test")}
    item, shown = column(feature_set, "test", "item"), column(feature_set, "train", "item")
    clicked = shown[column(feature_set, "train", "label") > 0]
    new = ~np.isin(item, shown)
    np.testing.assert_array_equal(found["new items", "no training row"], new)
    np.testing.assert_array_equal(found["new items", "clicked in training"], np.isin(item, clicked))
    assert new.sum() > 10


def test_known_users_are_those_that_training_showed_however_rarely(tmp_path):
    few = toy_feature_set(tmp_path, rows=300, users=100)
    found = {(one.dimension, one.name): one.rows_N for one in slices(few, "test")}
    user, shown = column(few, "test", "user"), column(few, "train", "user")
    once = np.flatnonzero(np.bincount(shown, minlength=few.schema.users) == 1)
    assert np.isin(user, once).any(), "a user of one training row has no id of its own"
    np.testing.assert_array_equal(found["user", "known from training"], np.isin(user, shown))
    np.testing.assert_array_equal(found["user", "new"], ~np.isin(user, shown))


def test_unknown_users_are_new_though_training_has_rows_of_some(feature_set, monkeypatch):
    def with_unknown(of, split, name):
        values = column(of, split, name).copy()
        if name == "user":
            values[:5] = UNKNOWN
        return values

    monkeypatch.setattr("ctr.evaluation.slices.column", with_unknown)
    found = {(one.dimension, one.name): one.rows_N for one in slices(feature_set, "test")}
    assert found["user", "new"][:5].tolist() == [True] * 5


def test_lengths_and_ages(feature_set):
    found = {(one.dimension, one.name): one.rows_N for one in slices(feature_set, "test")}
    length = column(feature_set, "test", "history_len")
    # Histories are cut to 8 events: a row that has 8 may have had 30.
    np.testing.assert_array_equal(found["history length", "5 or more"], length >= 5)
    assert length.max() == 8
    everyone = {
        name: np.concatenate([column(feature_set, split, name) for split in ("train", "valid", "test")])
        for name in ("user", "time")
    }
    row = int(np.flatnonzero(found["user in feature set", "8 to 30 days"])[0])
    of_user = everyone["user"] == column(feature_set, "test", "user")[row]
    days = (column(feature_set, "test", "time")[row] - everyone["time"][of_user].min()) / 86_400e6
    assert 7 <= days < 30


def test_metrics_of_a_slice_are_those_of_its_rows(feature_set):
    labels = column(feature_set, "test", "label")
    scores = np.clip(0.25 + 0.5 * labels + 0.2 * np.random.default_rng(0).normal(size=len(labels)), 0.01, 0.99)
    everything, *others = slice_metrics(feature_set, "test", scores)
    assert (everything.dimension, everything.rows, everything.positives) == ("all", len(labels), labels.sum())
    assert everything.metrics["auc_low"] < everything.metrics["auc"] < everything.metrics["auc_high"]
    small = [one for one in others if one.rows < 50]
    assert small and all("auc" not in one.metrics and "log_loss" in one.metrics for one in small)
    assert all("ece" not in one.metrics for one in (everything, *others)), "of 200 rows it is chance"


def test_intervals_of_slices_draw_users(feature_set):
    labels, users = column(feature_set, "test", "label"), column(feature_set, "test", "user")
    scores = np.clip(0.25 + 0.5 * labels + 0.3 * np.random.default_rng(0).normal(size=len(labels)), 0.01, 0.99)
    weights = column(feature_set, "test", "weight").astype(np.float64)
    (everything, *_) = slice_metrics(feature_set, "test", scores)
    expected = auc_interval(labels, scores, weights, clusters=users)
    assert (everything.metrics["auc"], everything.metrics["auc_low"]) == (expected.value, expected.low)
    assert everything.metrics["auc_high"] == expected.high
