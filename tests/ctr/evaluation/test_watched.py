"""What early stopping watches: metrics by hand, and metrics that the rows do not define."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ctr.evaluation.ranking_metrics import ranking_metrics
from ctr.evaluation.watched import WatchedRows
from features.errors import DataError
from tests.listed import built_lists
from tests.toy import toy_feature_set

LABELS = np.array([1.0, 0.0, 0.0, 1.0, 1.0, 1.0])
SCORES = np.array([0.9, 0.1, 0.9, 0.2, 0.5, 0.6])
USERS = np.array([1, 1, 1, 1, 2, 2])
REQUESTS = np.array([7, 7, 8, 8, 9, 9])


def watched(weights: np.ndarray | None = None, requests: np.ndarray | None = REQUESTS) -> WatchedRows:
    return WatchedRows(LABELS, USERS, requests, np.ones(6) if weights is None else weights)


def test_within_requests_by_hand():
    """Request 7 is right, 8 is wrong, 9 has one class; in user 1 two of the four pairs are right, one is a tie."""
    found = watched().metrics(SCORES)
    assert found["group_auc"] == 0.5
    assert found["gauc_by_samples"] == pytest.approx((2 + 0.5) / 4)


def test_a_request_weighs_the_mean_of_its_rows():
    weights = np.array([2.0, 4.0, 1.0, 1.0, 9.0, 9.0])
    assert watched(weights).metrics(SCORES)["group_auc"] == pytest.approx(3 / 4)
    weights[2:4] = 0  # a list may weigh nothing: the others are the mean
    assert watched(weights).metrics(SCORES)["group_auc"] == 1.0


def test_without_requests_there_is_no_such_metric():
    assert set(watched(requests=None).metrics(SCORES)) == {"auc", "log_loss", "gauc_by_samples"}
    assert "group_auc" not in watched(requests=np.arange(6)).metrics(SCORES)
    with pytest.raises(DataError, match=r"group_auc: the log does not name the request .* interactions\.request"):
        watched(requests=None).require("group_auc")


def test_requests_of_one_class_are_refused_before_training():
    with pytest.raises(DataError, match=r"group_auc: none of the 6 requests in the 6 validation rows has both labels"):
        watched(requests=np.arange(6)).require("group_auc")
    watched(requests=np.arange(6)).require("log_loss")


@pytest.mark.parametrize("metric", ["log_loss", "auc", "gauc_by_samples", "group_auc"])
def test_rows_of_one_label_are_refused_before_training_whatever_is_watched(metric: str):
    """Each evaluation tells the AUC. Positives that weigh nothing are none."""
    weightless = watched(np.where(LABELS == 1, 0.0, 1.0))
    for rows in (WatchedRows(np.zeros(6), USERS, REQUESTS, np.ones(6)), weightless):
        with pytest.raises(DataError, match="validation rows: AUC needs both classes, but 0 of 6 rows"):
            rows.require(metric)


@pytest.mark.parametrize(("metric", "of"), [("group_auc", "4 requests"), ("gauc_by_samples", "3 users")])
def test_groups_of_both_labels_that_weigh_nothing_are_refused_before_training(metric: str, of: str):
    """To an evaluation they are none. One more row, so that all together have both labels."""
    weights = np.array([0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0])
    rows = WatchedRows(np.append(LABELS, 0.0), np.append(USERS, 3), np.append(REQUESTS, 10), weights)
    with pytest.raises(DataError, match=rf"{metric}: none of the {of}"):
        rows.require(metric)
    rows.require("auc")


def test_of_a_log_with_lists_it_is_the_metric_of_its_lists(tmp_path: Path):
    rows = WatchedRows.of(built_lists(tmp_path))
    assert rows.requests is not None
    scores = np.random.default_rng(1).random(len(rows.labels))
    wanted = ranking_metrics(rows.labels, scores, rows.requests, rows.weights, clusters=rows.users)
    assert rows.metrics(scores)["group_auc"] == pytest.approx(wanted["group_auc"], abs=1e-12)
    rows.require("group_auc")


def test_of_a_log_without_them_there_are_none(tmp_path: Path):
    assert WatchedRows.of(toy_feature_set(tmp_path, rows=400, users=20)).requests is None
