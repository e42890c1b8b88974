"""The control that a ranker has to earn its complexity against: gradient boosting on four point-in-time counters.

    .venv/bin/python benchmarks/counters.py feature_sets/movielens

Counters of a row are taken strictly before its time: running positive rate and count of its item, and of its user.
"""

import argparse
from pathlib import Path

import numpy as np
from sklearn.ensemble import HistGradientBoostingClassifier

from ctr.evaluation.metrics import auc, auc_interval
from features.point_in_time.history import history_spans
from features.store.feature_set import SPLITS, FeatureSet


def running(key_R: np.ndarray, time_R: np.ndarray, label_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positive rate (NaN before the first event) and count of each row's key, strictly before the row."""
    order = np.lexsort((time_R, key_R))
    end, count = history_spans(key_R[order], time_R[order], np.ones(len(order), bool), max_len=len(order))
    positives = np.concatenate([[0.0], np.cumsum(label_R[order])])
    with np.errstate(invalid="ignore"):
        rate = (positives[end] - positives[end - count]) / count
    back = np.empty(len(order), np.int64)
    back[order] = np.arange(len(order))
    return rate[back], count[back].astype(float)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("feature_set", type=Path)
    feature_set = FeatureSet.open(parser.parse_args().feature_set)
    parts = [(name, part) for name in SPLITS for part in feature_set.rows(name)]
    split_R = np.concatenate([[name] * len(part["label"]) for name, part in parts])
    user_R, item_R, time_R, label_R = (
        np.concatenate([part[column] for _, part in parts]) for column in ("user", "item", "time", "label")
    )
    counters = np.column_stack([*running(item_R, time_R, label_R), *running(user_R, time_R, label_R)])
    rows = {name: split_R == name for name in SPLITS}
    model = HistGradientBoostingClassifier(learning_rate=0.05, max_iter=200, random_state=1)
    model.fit(counters[rows["train"]], label_R[rows["train"]])
    for name in ("valid", "test"):
        scores = model.predict_proba(counters[rows[name]])[:, 1]
        interval = auc_interval(label_R[rows[name]], scores, clusters=user_R[rows[name]])
        print(f"{name}: AUC {auc(label_R[rows[name]], scores):.4f} ({interval.low:.4f} to {interval.high:.4f})")


if __name__ == "__main__":
    main()
