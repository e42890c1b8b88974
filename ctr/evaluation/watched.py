"""What early stopping watches: the metrics of the validation rows after each evaluation.

Shapes: N validation rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ctr.data.columns import column, row_weights
from ctr.evaluation.checks import require_both_classes
from ctr.evaluation.metrics import auc, gauc_by_samples, log_loss
from ctr.evaluation.ranking_metrics import list_auc, requests_of
from features.errors import DataError, error_prefix
from features.store.feature_set import FeatureSet


@dataclass(frozen=True)
class WatchedRows:
    """The validation rows, which count by their weight, as they do in the loss.

    Args:
        labels: 0 or 1, [N].
        users: of each row, [N].
        requests: of each row, [N]; None if the log does not name one for every row.
        weights: of each row, [N].
    """

    labels: np.ndarray
    users: np.ndarray
    requests: np.ndarray | None
    weights: np.ndarray

    @classmethod
    def of(cls, feature_set: FeatureSet) -> WatchedRows:
        """Those of a feature set."""
        labels = column(feature_set, "valid", "label").astype(np.float64)
        users = column(feature_set, "valid", "user")
        return cls(labels, users, requests_of(feature_set, "valid"), row_weights(feature_set, "valid"))

    def metrics(self, scores: np.ndarray) -> dict[str, float]:
        """What an `Evaluation` knows of probabilities, [N]; `group_auc` only where the rows define it."""
        found = {
            "auc": auc(self.labels, scores, self.weights),
            "log_loss": log_loss(self.labels, scores, self.weights),
            "gauc_by_samples": gauc_by_samples(self.labels, scores, self.users, self.weights),
        }
        if self.requests is None:
            return found
        within = list_auc(self.labels, scores, self.requests, self.weights)
        return found if math.isnan(within) else found | {"group_auc": within}

    def require(self, metric: str, setting: str = "train.metric") -> None:
        """Refuse before training what no evaluation would have.

        Args:
            metric: that is asked for.
            setting: that names it.

        Raises:
            DataError: says what the rows lack, and the way out.
        """
        with error_prefix("validation rows"):
            require_both_classes(self.labels, self.weights)
        if metric == "group_auc" and self.requests is None:
            raise DataError(
                f"{setting} group_auc: the log does not name the request of each of the validation rows. Name the "
                "column in interactions.request, or choose log_loss, auc or gauc_by_samples."
            )
        groups = {"gauc_by_samples": self.users, "group_auc": self.requests}.get(metric)
        if groups is None or not math.isnan(self.metrics(np.zeros(len(self.labels))).get(metric, math.nan)):
            return
        of = "users" if metric == "gauc_by_samples" else "requests"
        raise DataError(
            f"{setting} {metric}: none of the {len(np.unique(groups)):,} {of} in the {len(self.labels):,} "
            "validation rows has both labels. Choose log_loss or auc, or widen split.valid."
        )
