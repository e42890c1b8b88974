"""Growing trees by scikit-learn's histogram boosting, their number chosen by the validation rows.

Shapes: N rows, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier

from ctr.config import ModelConfig
from ctr.trees.ensemble import Ensemble
from features.errors import DataError

# Of more rows scikit-learn bins a sample of so many.
BINNED_ROWS = 200_000
# Of a column that is known in a smaller share of these, the sample might hold no number.
LEAST_KNOWN = 1e-4


@dataclass(frozen=True)
class Rows:
    """Rows to learn from, or to judge by.

    Args:
        features: float32 [N, F]; NaN where missing.
        labels: 0 or 1, [N].
        weights: [N].
    """

    features: np.ndarray
    labels: np.ndarray
    weights: np.ndarray


class Grown:
    """Trees, and how many of them the validation rows have a use for.

    Args:
        model: fitted.
        trees: how many count.
    """

    def __init__(self, model: HistGradientBoostingClassifier, trees: int) -> None:
        self._model = model
        self.trees = trees

    @property
    def grown(self) -> int:
        """All trees: those of the patience, too."""
        return int(self._model.n_iter_)

    @property
    def training_losses(self) -> np.ndarray:
        """Log loss of the training rows after 0, 1, … trees."""
        return -np.asarray(self._model.train_score_)

    def probabilities(self, features: np.ndarray, counts: Sequence[int] | None = None) -> np.ndarray:
        """Probabilities, float64 [counts, N], of so many trees; ascending, default: those that count."""
        wanted = [self.trees] if counts is None else list(counts)
        stages = enumerate(self._model.staged_predict_proba(features), start=1)
        return np.stack([proba[:, 1] for number, proba in islice(stages, max(wanted)) if number in wanted])

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Logits of the trees that count, float32 [N]."""
        stages = self._model._staged_raw_predict(features)
        return np.asarray(next(islice(stages, self.trees - 1, None))[:, 0], np.float32)

    def put_into(self, ensemble: Ensemble) -> None:
        """Copy the trees that count into tensors."""
        # scikit-learn has no public view of its trees; it is pinned, and a test compares what is read here with
        # `predict_proba`.
        trees = [per_class[0].nodes for per_class in self._model._predictors[: self.trees]]
        ensemble.set(trees, float(np.ravel(self._model._baseline_prediction)[0]))


def grow(train: Rows, valid: Rows, config: ModelConfig, seed: int) -> Grown:
    """Trees that are grown on the training rows, until `tree_patience` of them do not lower the validation log loss.

    Of up to 200,000 training rows, scikit-learn bins all and draws nothing at random. A column without any number in
    rows that count is never read, nor, of more rows, one that is known in less than one of 10,000.

    Raises:
        DataError: the training or the validation rows are all clicks, or none is.
    """
    _require_both_labels(train, "training rows")
    _require_both_labels(valid, "validation rows")
    model = HistGradientBoostingClassifier(
        learning_rate=config.tree_rate,
        max_leaf_nodes=config.tree_leaves,
        l2_regularization=config.tree_l2,
        max_iter=config.trees,
        random_state=seed % 2**32,
        early_stopping=True,
        n_iter_no_change=config.tree_patience,
    )
    model.fit(
        _with_numbers(train),
        train.labels,
        sample_weight=train.weights,
        X_val=valid.features,
        y_val=valid.labels,
        sample_weight_val=valid.weights,
    )
    # Validation scores are negative losses, the first without trees.
    return Grown(model, max(1, int(np.argmax(model.validation_score_))))


def _with_numbers(train: Rows) -> np.ndarray:
    """The features, with zeros for columns of which scikit-learn might bin no number: it fails at these."""
    least = LEAST_KNOWN * train.weights.sum() if len(train.features) > BINNED_ROWS else 0
    known_F = np.array([train.weights[~np.isnan(column_N)].sum() for column_N in train.features.T])
    unknown_F = known_F <= least
    return np.where(unknown_F, np.float32(0), train.features) if unknown_F.any() else train.features


def _require_both_labels(rows: Rows, name: str) -> None:
    if len(np.unique(rows.labels[rows.weights > 0])) < 2:
        raise DataError(f"boosting: the {name} have one label alone; trees need both. Widen the split.")
