"""How well the validation rows tell trials apart: the metric of a sweep in resamples of users.

Shapes: N rows, U users, S seeds, B resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ctr.evaluation.bootstrap import Interval, UserDraws
from ctr.evaluation.metrics import PROBABILITY_MARGIN, group_aucs
from ctr.evaluation.significance import SeededAuc, seeded_aucs, seeded_list_aucs
from ctr.evaluation.watched import WatchedRows
from features.store.atomic import replace_file
from features.store.feature_set import FeatureSet
from pipelines.tune.search.space import DIRECTIONS, Metric

SCORES = "scores-valid.npy"


class ValidationRows:
    """The validation rows of a sweep, on which all its trials are measured.

    Args:
        feature_set: of any trial: trials have the same rows.
        metric: of the sweep.

    Raises:
        DataError: rows that do not define the metric.
    """

    def __init__(self, feature_set: FeatureSet, metric: Metric) -> None:
        self.metric: Metric = metric
        rows = WatchedRows.of(feature_set)
        rows.require(metric, "metric")
        self.labels, self.users, self.requests, self.weights = rows.labels, rows.users, rows.requests, rows.weights

    def measured(self, folders: Sequence[Path]) -> SeededAuc | None:
        """The metric of trainings of one setting, with its resamples; None where scores are not here, or users too few.

        Args:
            folders: of the trainings, a seed each.
        """
        files = [folder / SCORES for folder in folders]
        if not files or not all(file.is_file() for file in files) or len(np.unique(self.users)) < 2:
            return None
        scores_SN = np.stack([np.load(file, allow_pickle=False) for file in files]).astype(np.float64)
        if scores_SN.shape[1] != len(self.labels):
            return None
        if self.metric == "auc":
            found = seeded_aucs(self.labels, {"": scores_SN}, self.weights, clusters=self.users)
            return found[""]
        if self.metric == "group_auc":
            assert self.requests is not None, "else the metric was refused"
            lists = seeded_list_aucs(self.labels, {"": scores_SN}, self.requests, self.weights, clusters=self.users)
            return lists.get("")
        draws = UserDraws(self.users)
        sums = [self._sums_of_users(scores_N) for scores_N in scores_SN]
        by_seed = np.array([above.sum() / below.sum() for above, below in sums])
        drawn = [float(np.mean([times @ a / (times @ b) for a, b in sums])) for times in draws.by_user(0)]
        return SeededAuc(by_seed, np.array(drawn), draws.count)

    def gain(self, ours: SeededAuc, theirs: SeededAuc) -> Interval:
        """How much better `ours` is, with its 95 % interval, paired by user; above 0 is better, also of a loss."""
        found = ours.minus(theirs) if DIRECTIONS[self.metric] == "maximize" else theirs.minus(ours)
        return Interval(found.value, found.low, found.high)

    def _sums_of_users(self, scores_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Both of log loss and GAUC are a sum over users by another one: the two parts of each user, [U]."""
        distinct, user_of_row_N = np.unique(self.users, return_inverse=True)
        if self.metric == "log_loss":
            likely_N = np.clip(scores_N, PROBABILITY_MARGIN, 1 - PROBABILITY_MARGIN)
            loss_N = -np.where(self.labels > 0, np.log(likely_N), np.log1p(-likely_N)) * self.weights
            count = len(distinct)
            return np.bincount(user_of_row_N, loss_N, count), np.bincount(user_of_row_N, self.weights, count)
        above, below = np.zeros(len(distinct)), np.zeros(len(distinct))
        for user, rows in _rows_of_users(user_of_row_N, len(distinct)):
            auc_G, weight_G = group_aucs(self.labels[rows], scores_N[rows], np.zeros(len(rows)), self.weights[rows])
            if len(auc_G):
                above[user], below[user] = float(auc_G[0] * weight_G[0]), float(weight_G[0])
        return above, below


def save_scores(folder: Path, scores: np.ndarray) -> None:
    """Keep the validation scores of a trial, [N], before calibration, in its folder."""

    def write(fresh: Path) -> None:
        with fresh.open("wb") as file:
            np.save(file, scores.astype(np.float32), allow_pickle=False)

    replace_file(folder / SCORES, write)


def _rows_of_users(user_of_row_N: np.ndarray, users: int) -> list[tuple[int, np.ndarray]]:
    order = np.argsort(user_of_row_N, kind="stable")
    bounds = np.searchsorted(user_of_row_N[order], np.arange(users + 1))
    return [(user, order[bounds[user] : bounds[user + 1]]) for user in range(users)]
