"""Controls on a small log whose true probabilities are written down row by row."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from ctr.evaluation.baselines import (
    PRIOR_ROWS,
    base_rate_log_loss,
    optimal_lift_share,
    optimum_scores,
    popularity_scores,
)
from features.build.build import build_feature_set
from features.contract.contract import Contract
from features.encoding.encoder import Encoder
from features.errors import DataError
from features.store.feature_set import FeatureSet
from tests.toy import toy_feature_set

ROWS = 200


def log() -> pl.DataFrame:
    """Text users, whole-number items, times in seconds; a fifth of the times hold two rows."""
    draw = np.random.default_rng(0)
    return pl.DataFrame(
        {
            "who": [f"user {i}" for i in draw.integers(12, size=ROWS)],
            "what": draw.integers(100, 115, size=ROWS),
            "at": np.sort(draw.choice(np.repeat(np.arange(ROWS), 2), size=ROWS, replace=False)) + 1_700_000_000,
            "clicked": draw.integers(2, size=ROWS),
            "probability": draw.random(ROWS),
        }
    ).unique(["who", "what", "at"], keep="first", maintain_order=True)


def build(folder: Path, truth: pl.DataFrame | None) -> FeatureSet:
    (folder / "raw").mkdir()
    log().drop("probability").write_parquet(folder / "raw/log.parquet")
    if truth is not None:
        # The truth is joined by its keys, so its own order must not matter.
        truth.sample(fraction=1, shuffle=True, seed=1).write_parquet(folder / "raw/truth.parquet")
    content = {
        "name": "small",
        "root": str(folder / "raw"),
        "interactions": {"path": "log.parquet", "user": "who", "item": "what", "time": "at", "label": "clicked"},
        "split": {"valid": 0.2, "test": 0.2},
        "truth": {"path": "truth.parquet"},
    }
    return build_feature_set(Contract.model_validate(content), folder / "out").feature_set


def test_the_base_rate_is_that_of_training(tmp_path: Path):
    feature_set = build(tmp_path, None)
    labels = {
        split: [float(label) for part in feature_set.rows(split) for label in part["label"]]
        for split in ("train", "valid")
    }
    rate, clicks = np.mean(labels["train"]), np.mean(labels["valid"])
    expected = -(clicks * np.log(rate) + (1 - clicks) * np.log(1 - rate))
    assert rate != clicks and base_rate_log_loss(feature_set, "valid") == pytest.approx(expected)


def test_popularity_is_the_smoothed_mean_label_of_the_item_in_training(tmp_path: Path):
    feature_set = build(tmp_path, None)
    train = feature_set.rows("train")
    seen = [(item, label) for part in train for item, label in zip(part["item"], part["label"], strict=True)]
    base_rate = sum(label for _, label in seen) / len(seen)
    test = [item for part in feature_set.rows("test") for item in part["item"]]
    scores = popularity_scores(feature_set, "test")
    assert len(scores) == len(test) == feature_set.manifest.windows["test"].rows
    for item, score in zip(test, scores, strict=True):
        labels = [label for other, label in seen if other == item]
        assert score == pytest.approx((sum(labels) + PRIOR_ROWS * base_rate) / (len(labels) + PRIOR_ROWS))
    assert len(set(scores)) > 5


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_the_optimum_is_the_truth_of_each_row(tmp_path: Path, split: Any):
    feature_set = build(tmp_path, log())
    encoder = Encoder.load(feature_set.path)
    scores = optimum_scores(feature_set, split)
    written = {(who, what, at): value for who, what, at, _, value in log().rows()}
    keys = [
        (encoder.users.value(user), encoder.items.value(item), time // 1_000_000)
        for part in feature_set.rows(split)
        for user, item, time in zip(part["user"], part["item"], part["time"], strict=True)
    ]
    assert scores is not None
    assert scores.tolist() == [written[key] for key in keys]


def test_without_a_truth_there_is_no_optimum(tmp_path: Path):
    assert optimum_scores(build(tmp_path, None), "test") is None
    assert optimum_scores(toy_feature_set(tmp_path / "toy"), "test") is None


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        (log().head(ROWS - 20), r"no probability for \d+ of \d+ test rows"),
        (pl.concat([log(), log().tail(3)]), "6 rows share user, item and time"),
        (log().rename({"probability": "chance"}), "no column 'probability'"),
        (log().with_columns(pl.lit("7").alias("what")), r"truth\.parquet: column 'what': holds String"),
    ],
)
def test_a_truth_of_another_log_is_refused(tmp_path: Path, truth: pl.DataFrame, message: str):
    with pytest.raises(DataError, match=message):
        optimum_scores(build(tmp_path, truth), "test")


def test_the_share_of_the_optimal_lift_by_hand():
    assert optimal_lift_share(0.6, 0.75) == pytest.approx(0.4)
    assert optimal_lift_share(0.5, 0.8) == 0


@pytest.mark.parametrize("optimum", [0.5, 0.48])
def test_of_an_optimum_that_is_not_above_chance_there_is_no_share(optimum: float):
    assert math.isnan(optimal_lift_share(0.6, optimum))
