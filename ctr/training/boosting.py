"""Growing the trees of a model: its only training where no network stands beside them, else the last part of it.

A run of trees alone has the files of any run, without checkpoints: one that was stopped grows its trees anew.

Shapes: N rows of a split.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.special import expit, logit

from ctr.config import TrainConfig
from ctr.data.columns import column, row_weights
from ctr.evaluation.metrics import log_loss
from ctr.evaluation.watched import WatchedRows
from ctr.model.click_model import ClickModel
from ctr.training.checkpoint import CURVE, CheckpointStore, Evaluation, Identity
from ctr.training.loop import FitResult, StopTraining, predict
from ctr.trees.feature_rows import feature_rows
from ctr.trees.growing import Grown, Rows, grow
from features.progress import Progress
from features.progress import progress as show_progress
from features.store.atomic import write_text
from features.store.feature_set import FeatureSet, SplitName

EVALUATIONS = 20  # points of the curve
SHARES = [number / 100 for number in range(101)]


def fit_trees(
    model: ClickModel,
    feature_set: FeatureSet,
    config: TrainConfig,
    run_dir: Path,
    *,
    on_evaluation: Callable[[Evaluation], None] | None = None,
    progress: Progress = show_progress,
    resume: bool = False,
) -> FitResult:
    """Grow the trees of a model without a network, and write the curve: up to 20 numbers of trees, the best with them.

    The log loss of the validation rows chooses how many trees count.

    Args:
        model: with trees and without a tower.
        feature_set: where rows come from.
        config: of which `seed` alone is read.
        run_dir: gets curve.jsonl.
        on_evaluation: called with each point of the curve, once it is known; may raise StopTraining.
        progress: how to show it.
        resume: whether a run may be there, whose trees are grown anew.

    Raises:
        ConfigError: without `resume`, a run in `run_dir`.
        DataError: training or validation rows of one label.
    """
    started = time.monotonic()
    store = CheckpointStore(run_dir, Identity.of(model, feature_set, config))
    if resume:
        store.remove_halves()
    else:
        store.start()
    train, valid = (rows_of(model, feature_set, split, progress) for split in ("train", "valid"))
    grown = grow_into(model, train, valid, config.seed)
    curve = _curve(grown, valid, WatchedRows.of(feature_set), model.config.tree_rate)
    write_text(run_dir / CURVE, "".join(f"{one.model_dump_json()}\n" for one in curve))
    stopped = on_evaluation is not None and _stopped(curve, on_evaluation)
    seconds = time.monotonic() - started
    return FitResult(
        best=next(one for one in curve if one.step == grown.trees).metrics(),
        curve=curve,
        rows_per_second=len(train.labels) / seconds,
        epochs_run=1.0,
        stopped_early=grown.grown < model.config.trees,
        stopped_by_callback=stopped,
        seconds=seconds,
    )


def _stopped(curve: Sequence[Evaluation], on_evaluation: Callable[[Evaluation], None]) -> bool:
    """Whether the caller ends training at one of these evaluations."""
    try:
        for evaluation in curve:
            on_evaluation(evaluation)
    except StopTraining:
        return True
    return False


def grow_beside(
    model: ClickModel,
    feature_set: FeatureSet,
    config: TrainConfig,
    network: FitResult,
    progress: Progress = show_progress,
) -> FitResult:
    """Grow the trees of a model whose network is trained, and choose their share of the logit.

    The share is the hundredth that gives the validation rows the least log loss. Nothing is drawn but from `seed`: a
    run that is resumed grows the same trees.

    Args:
        model: with trees, its network trained and not calibrated yet.
        feature_set: where rows come from.
        config: of which `seed` alone is read.
        network: how its training went.
        progress: how to show it.

    Returns:
        The same, its best metrics those of both together.

    Raises:
        DataError: training or validation rows of one label.
    """
    assert model.trees is not None
    started = time.monotonic()
    model.trees.ensemble.set([], 0.0)  # those of a run that was stopped after they were grown
    network_N = _logits(predict(model, feature_set, "valid"))
    train, valid = (rows_of(model, feature_set, split, progress) for split in ("train", "valid"))
    trees_N = grow_into(model, train, valid, config.seed).logits(valid.features).astype(np.float64)
    share = best_share(network_N, trees_N, valid)
    model.trees.share.fill_(share)
    best = WatchedRows.of(feature_set).metrics(expit((1 - share) * network_N + share * trees_N))
    return replace(network, best=best, seconds=network.seconds + time.monotonic() - started)


def best_share(network_N: np.ndarray, trees_N: np.ndarray, rows: Rows) -> float:
    """The share of the trees' logit, in hundredths, with which rows have the least log loss; the least such share."""

    def loss(share: float) -> float:
        return log_loss(rows.labels, expit((1 - share) * network_N + share * trees_N), rows.weights)

    return min(SHARES, key=loss)


def rows_of(model: ClickModel, feature_set: FeatureSet, split: SplitName, progress: Progress) -> Rows:
    """The rows of a split as the trees of a model read them."""
    labels_N = column(feature_set, split, "label")
    with progress(f"tabular features of {split}", len(labels_N), "rows") as bar:
        features_NF = feature_rows(feature_set, split, past=model.config.use_history, advance=bar.advance)
    return Rows(features_NF, labels_N, row_weights(feature_set, split))


def grow_into(model: ClickModel, train: Rows, valid: Rows, seed: int) -> Grown:
    """Grow trees by the model's settings and put those that count into it."""
    assert model.trees is not None
    grown = grow(train, valid, model.config, seed)
    grown.put_into(model.trees.ensemble)
    return grown


def _curve(grown: Grown, valid: Rows, watched: WatchedRows, rate: float) -> list[Evaluation]:
    every = {math.ceil(grown.grown * number / EVALUATIONS) for number in range(1, EVALUATIONS + 1)}
    counts = sorted(every | {grown.trees})
    scores = grown.probabilities(valid.features, counts)
    return [
        Evaluation(
            step=trees,
            epoch=trees / grown.grown,
            **watched.metrics(scores_N),
            train_loss=float(grown.training_losses[trees]),
            train_click_loss=float(grown.training_losses[trees]),
            learning_rate=rate,
        )
        for trees, scores_N in zip(counts, scores, strict=True)
    ]


def _logits(scores_N: np.ndarray) -> np.ndarray:
    """Logits, float64, of probabilities in single precision, which may be 0 or 1."""
    return logit(np.clip(scores_N.astype(np.float64), 1e-12, 1 - 1e-7))
