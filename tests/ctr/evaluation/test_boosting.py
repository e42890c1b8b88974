from __future__ import annotations

import numpy as np
import pytest

from ctr.config import ModelConfig
from ctr.data.columns import row_weights
from ctr.evaluation import boosting
from ctr.evaluation.boosting import _boosted, counters_control, tabular_control
from ctr.evaluation.metrics import auc, log_loss
from features.errors import ConfigError
from tests.toy import CONTRACT, toy_feature_set


@pytest.fixture(scope="module")
def feature_set(tmp_path_factory):
    return toy_feature_set(tmp_path_factory.mktemp("toy") / "toy")


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
        monkeypatch.setattr(boosting, "SETTINGS", ModelConfig(trees=trees))
        return log_loss(labels["valid"], _boosted(made, feature_set, ["valid"], seeds=1)["valid"][0], weights)

    # However many may grow, no more are kept than valid rows have a use for.
    losses = [loss(trees) for trees in (1, 3, 30)]
    assert losses == sorted(losses, reverse=True)
