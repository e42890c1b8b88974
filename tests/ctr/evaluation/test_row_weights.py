"""`interactions.weight` counts: a log with whole weights is worth what the log with its rows repeated is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from ctr.data.columns import column, row_weights, training_rate
from ctr.data.loader import Loader
from ctr.diagnosis.permutation_importance import permutation_importance
from ctr.evaluation.baselines import popularity_scores
from ctr.evaluation.boosting import counters_control
from ctr.evaluation.catalog_coverage import top_lists
from ctr.evaluation.evaluate import evaluate
from ctr.evaluation.metrics import auc
from ctr.evaluation.slices import slice_metrics, training_counts
from ctr.evaluation.watched import WatchedRows
from ctr.model.calibrator import Calibrator
from ctr.training.calibrate import cross_fitted
from ctr.training.loop import _validation_metrics
from features.progress import silent
from features.stopping import StopRequest
from features.store.feature_set import FeatureSet, read_arrow, write_arrow
from tests.toy import toy_feature_set


def changed(folder: Path, change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> FeatureSet:
    """The toy feature set with other row columns."""
    toy_feature_set(folder, rows=12_000)
    for path in sorted(folder.glob("rows/*/*.arrow")):
        write_arrow(path, change({name: values.copy() for name, values in read_arrow(path).items()}))
    return FeatureSet.open(folder)


def whole_weights(rows: dict[str, np.ndarray]) -> np.ndarray:
    """1, 2 or 3, and heavier where the label is 1: weights that change every rate."""
    return (1 + rows["time"] // 3_600_000_000 % 2 + rows["label"]).astype(np.int64)


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> tuple[FeatureSet, FeatureSet]:
    """A log with weights, and the same with each row repeated as often."""
    folder = tmp_path_factory.mktemp("weights")
    weighted = changed(folder / "weighted", lambda rows: rows | {"weight": whole_weights(rows).astype(np.float32)})

    def repeated(rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        times = whole_weights(rows)
        return {name: np.repeat(values, times, axis=0) for name, values in rows.items() if name != "weight"}

    return weighted, changed(folder / "repeated", repeated)


def scores_of(feature_set: FeatureSet, split) -> np.ndarray:
    """The same for each repeated row: of what the row is."""
    noise = np.sin(column(feature_set, split, "time") / 7e9 + column(feature_set, split, "item"))
    return 0.5 + 0.3 * noise + 0.15 * (column(feature_set, split, "label") - 0.5)


def test_without_weights_each_row_counts_one(pair):
    assert row_weights(pair[1], "test").tolist() == [1.0] * len(column(pair[1], "test", "item"))
    assert row_weights(pair[0], "test").sum() == len(column(pair[1], "test", "item"))


def test_all_metrics(pair):
    found = [
        evaluate(
            column(one, "test", "label"),
            scores_of(one, "test"),
            column(one, "test", "user"),
            training_rate(one),
            row_weights(one, "test"),
        )
        for one in pair
    ]
    assert len(found[0]) == 8
    assert found[0] == pytest.approx(found[1], abs=1e-9)


def test_slices(pair):
    found = [slice_metrics(one, "test", scores_of(one, "test")) for one in pair]
    assert [one.name for one in found[0]] == [one.name for one in found[1]]
    for weighted, repeated in zip(*found, strict=True):
        # What needs so many rows may be there for more of them.
        shared = {name: value for name, value in weighted.metrics.items() if name in repeated.metrics}
        assert "log_loss" in shared
        assert shared == pytest.approx({name: repeated.metrics[name] for name in shared}, abs=1e-9)


def test_counts_of_items(pair):
    weighted, repeated = (training_counts(one) for one in pair)
    for one, other in zip(weighted, repeated, strict=True):
        np.testing.assert_allclose(one, other)


def by_row(feature_set: FeatureSet, scores: np.ndarray) -> np.ndarray:
    """Scores of the distinct rows: of the repeated log, the first of each."""
    keys = np.stack([column(feature_set, "test", name) for name in ("user", "time", "item", "hour")])
    return scores[np.unique(keys, axis=1, return_index=True)[1]]


def test_popularity(pair):
    weighted, repeated = (by_row(one, popularity_scores(one, "test")) for one in pair)
    np.testing.assert_allclose(weighted, repeated)


def test_boosting(pair, tmp_path):
    # Scikit-learn asks for 20 rows a leaf, whatever they weigh, so the trees of repeated rows may be finer; but they
    # learn the rate that the weights make, which is far from that of the rows.
    scores = counters_control(pair[0], ["test"], seeds=1)["test"][0]
    weights = row_weights(pair[0], "test")
    assert np.average(scores, weights=weights) == pytest.approx(training_rate(pair[0]), abs=0.03)
    labels = column(pair[0], "train", "label")
    assert training_rate(pair[0]) > labels.mean() + 0.05
    repeated = counters_control(pair[1], ["test"], seeds=1)["test"][0]
    assert np.abs(by_row(pair[0], scores) - by_row(pair[1], repeated)).mean() < 0.02


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_calibration(pair, method):
    found = []
    for one in pair:
        labels, users = column(one, "test", "label"), column(one, "test", "user")
        calibrated = cross_fitted(method, scores_of(one, "test"), labels, users, row_weights(one, "test"))
        assert calibrated is not None
        found.append(by_row(one, calibrated))
    np.testing.assert_allclose(*found, atol=1e-3)


class Scores(torch.nn.Module):
    """A model whose logit is the load of the row's context."""

    def __init__(self) -> None:
        super().__init__()
        self.calibrator = Calibrator()

    def attach(self, tables) -> None:
        pass

    def forward(self, batch):
        return torch.nan_to_num(batch.context["load"])


def test_early_stopping(pair):
    weighted, repeated = (
        _validation_metrics(
            Scores(), Loader(one, "valid", 512), WatchedRows.of(one), torch.device("cpu"), StopRequest()
        )
        for one in pair
    )
    assert weighted == pytest.approx(repeated, abs=1e-6)
    assert set(weighted) == {"auc", "log_loss", "gauc_by_samples"}


def test_permutation_importance(pair):
    for one in pair:
        found = {(drop.side, drop.name): drop.drop for drop in permutation_importance(Scores(), one, "test", 0, silent)}
        load = np.nan_to_num(column(one, "test", "load"))
        whole = auc(column(one, "test", "label"), load, row_weights(one, "test"))
        # The shuffled load ranks by chance.
        assert found["context", "load"].value == pytest.approx(whole - 0.5, abs=0.05)


def test_calibration_of_top_lists(pair):
    weighted = pair[0]
    scores, weights = scores_of(weighted, "test"), row_weights(weighted, "test")
    # Lists long enough to hold every row: the ratio is that of the split.
    found = top_lists(weighted, "test", scores, k=10_000)
    assert found.calibration == pytest.approx(scores @ weights / (column(weighted, "test", "label") @ weights))
