from __future__ import annotations

import math

import numpy as np
import pytest

from ctr.data.columns import row_weights
from ctr.evaluation import boosting
from ctr.evaluation.boosting import _boosted, _past, _table, counters_control, tabular_control
from ctr.evaluation.metrics import auc, log_loss
from features.errors import ConfigError
from features.store.schema import Field
from tests.toy import CONTRACT, toy_feature_set


@pytest.fixture(scope="module")
def feature_set(tmp_path_factory):
    return toy_feature_set(tmp_path_factory.mktemp("toy") / "toy")


def test_features_of_a_past_by_hand():
    # Items 2, 3, 4 at cosines 1, 0.6 and 0 to item 2; two events before the row: item 3 said 1, item 4 said -1.
    units = [np.array([[0, 0], [0, 0], [1, 0], [0.6, 0.8], [0, 1]], np.float32)]
    price = [np.array([0, 0, 10, 4, np.nan], np.float32)]
    events, said = np.array([2, 3, 4]), np.array([[9.0], [1.0], [-1.0]], np.float32)
    rows = {"item": np.array([2]), "history_end": np.array([3]), "history_len": np.array([2])}
    found = _past(rows, events, said, units, [], price, max_len=4)[0]
    first, second = math.exp(4 * 0.6), 1.0
    weighted = (first * 1 - second * 1) / (first + second)
    # Length; highest, mean of nearest four, mean; plain, newest and weighted means; distance to (4 + 0) / 2.
    expected = [math.log(3), 0.6, 0.6 / 4, 0.3, 0.0, 0.0, weighted, 8.0]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_an_empty_past_is_finite():
    units = [np.eye(3, dtype=np.float32)]
    rows = {"item": np.array([2]), "history_end": np.array([0]), "history_len": np.array([0])}
    assert np.isfinite(_past(rows, np.array([1, 2]), np.zeros((2, 1), np.float32), units, [], [], max_len=3)).all()


def test_small_vocabularies_become_one_feature_a_value():
    fields = (
        Field(name="a", kind="categorical", size=4),
        Field(name="b", kind="tags", size=4, max_len=2),
        Field(name="big", kind="categorical", size=500),
        Field(name="names", kind="tags", size=500, max_len=2),
        Field(name="n", kind="numeric"),
    )
    columns = {
        "a": np.array([3, 1]),
        "b": np.array([[2, 3], [2, 0]]),
        "big": np.array([77, 1]),
        "names": np.array([[77, 0], [1, 0]]),
        "n": np.array([0.5, np.nan], np.float32),
    }
    np.testing.assert_array_equal(_table(fields, columns), [[0, 1, 1, 1, 77, 0.5], [0, 0, 1, 0, 1, np.nan]])


def test_history_read_through_content_beats_counters(feature_set):
    labels = np.concatenate([part["label"] for part in feature_set.rows("test")])
    both = tabular_control(feature_set, ["valid", "test"], seeds=2)
    assert both["test"].shape == (2, len(labels)) and set(both) == {"valid", "test"}
    # Of so few rows nothing is drawn at random.
    np.testing.assert_array_equal(*both["test"])
    tabular, counters = both["test"][0], counters_control(feature_set, ["test"], seeds=1)["test"][0]
    assert tabular.shape == labels.shape and ((tabular > 0) & (tabular < 1)).all()
    # The toy's user likes one genre, which vectors and past clicks tell, and counters of items do not.
    assert auc(labels, tabular) > auc(labels, counters) + 0.1
    np.testing.assert_array_equal(tabular, tabular_control(feature_set, ["test"], seeds=1)["test"][0])


def test_without_counters_there_is_no_control_of_them(feature_set, monkeypatch):
    bare = CONTRACT.model_copy(update={"counters": {}})
    monkeypatch.setattr(type(feature_set), "contract", bare)
    with pytest.raises(ConfigError, match="declares no `counters`"):
        counters_control(feature_set, ["test"], seeds=1)


def test_trees_that_fit_noise_are_left_out(feature_set, monkeypatch):
    labels = {one: np.concatenate([part["label"] for part in feature_set.rows(one)]) for one in ("train", "valid")}
    noise, weights = np.random.default_rng(0), row_weights(feature_set, "valid")
    made = {one: noise.standard_normal((len(found), 20)) for one, found in labels.items()}

    def loss(trees):
        monkeypatch.setattr(boosting, "MOST_TREES", trees)
        return log_loss(labels["valid"], _boosted(made, feature_set, ["valid"], seeds=1)["valid"][0], weights)

    # However many may grow, no more are kept than valid rows have a use for.
    losses = [loss(trees) for trees in (1, 3, 30)]
    assert losses == sorted(losses, reverse=True)
