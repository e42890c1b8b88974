"""One model trained and calibrated: what `train`, `compare` and `ablate` share."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from ctr.config import ModelConfig, Preset, TrainConfig
from ctr.data.columns import column, row_weights
from ctr.data.feature_tables import FrozenTables, frozen_tables
from ctr.model.calibrator import Curve
from ctr.model.click_model import ClickModel
from ctr.training.boosting import fit_trees, grow_beside
from ctr.training.calibrate import Calibrated, calibrate
from ctr.training.checkpoint import MODEL, save_tensors
from ctr.training.loop import Evaluation, FitResult, fit, predict_tasks, require_training
from ctr.training.warm.parent import Parent
from features.errors import ConfigError, DataError
from features.progress import progress as show_progress
from features.store.atomic import write_text
from features.store.feature_set import FeatureSet, SplitName
from pipelines.job.evaluate import has_both_classes, require_both_labels, score_split, task_labels

CALIBRATION = "calibration.json"


def new_model(
    config: ModelConfig, feature_set: FeatureSet, seed: int, tables: FrozenTables | None = None
) -> ClickModel:
    """A fresh model with the feature set's tables, or others in their form, attached."""
    torch.manual_seed(seed)
    model = ClickModel(config, feature_set.schema)
    model.attach(tables or frozen_tables(feature_set))
    return model


def require_fit(preset: Preset, feature_set: FeatureSet, warm: Parent | None = None) -> None:
    """Refuse before anything is written what `fit_and_calibrate` would refuse, and rows that teach nothing.

    Args:
        preset: settings of the model and of training.
        feature_set: to train on.
        warm: the run to go on from.

    Raises:
        QuadRankError: as `fit_and_calibrate`, and as `ClickModel`; training or validation rows of one label; a further
            task of a full training whose label no training row has.
    """
    splits: tuple[SplitName, ...] = ("train", "valid")
    for split in splits:
        require_both_labels(feature_set, split)
    _require_own_negatives(preset.model, feature_set)
    with torch.device("meta"):  # a model without weights refuses what it cannot be made of
        ClickModel(preset.model, feature_set.schema)
    if warm is None:  # else its head goes on as it was
        _require_known_labels(preset.model, feature_set)
    if preset.model.tower != "none":
        require_training(feature_set, preset.train, warm)


def fit_and_calibrate(
    model: ClickModel,
    feature_set: FeatureSet,
    config: TrainConfig,
    folder: Path,
    on_evaluation: Callable[[Evaluation], None] | None = None,
    resume: bool = False,
    progress: Any = show_progress,
    warm: Parent | None = None,
    calibrated_by: Path | None = None,
) -> tuple[FitResult, Calibrated]:
    """Train into `folder`, then fit the calibrations on the validation rows and save them with the weights.

    With `warm` the training goes on from that run; calibrations are fitted anew all the same. With `calibrated_by`, the
    folder of a run of the same model, they are that run's: where the model learns from the validation rows, these
    would find it better calibrated than it is.

    Raises:
        ConfigError: further tasks on drawn negatives.
        QuadRankError: as `ctr.training.loop.fit`.
    """
    _require_own_negatives(model.config, feature_set)
    how: dict[str, Any] = {"on_evaluation": on_evaluation, "resume": resume, "progress": progress}
    if model.network is None:
        result = fit_trees(model, feature_set, config, folder, **how)
    else:
        result = fit(model, feature_set, config, folder, warm=warm, **how)
    model.calibrator.set(Curve())  # a finished run that is resumed has its calibration already
    if model.network is not None and model.trees is not None and not result.stopped_by_callback:
        result = grow_beside(model, feature_set, config, result, progress)
    if calibrated_by is not None:
        known = {name: one for name, one in load_file(calibrated_by / MODEL).items() if "calibrat" in name}
        model.load_state_dict(known, strict=False)
        save_tensors(folder / MODEL, model.state_dict())
        calibrated = Calibrated(config.calibration, {}, {})
        write_text(folder / CALIBRATION, json.dumps(asdict(calibrated), indent=2))
        return result, calibrated
    valid = score_split(model, feature_set, "valid")
    calibrated = calibrate(
        model.calibrator, config.calibration, valid.scores, valid.labels, valid.groups, valid.weights
    )
    _calibrate_tasks(model, feature_set, config)
    save_tensors(folder / MODEL, model.state_dict())
    write_text(folder / CALIBRATION, json.dumps(asdict(calibrated), indent=2))
    return result, calibrated


def _require_own_negatives(config: ModelConfig, feature_set: FeatureSet) -> None:
    """Refuse further tasks beside negatives that were drawn."""
    sampling = feature_set.manifest.sampling
    if config.tasks and sampling is not None and sampling.rate is not None:
        raise ConfigError(
            f"model.tasks: {', '.join(config.tasks)} cannot be learned beside drawn negatives, whose share would "
            "distort these probabilities. Use a log with its own negatives, or train without model.tasks."
        )


def _require_known_labels(config: ModelConfig, feature_set: FeatureSet) -> None:
    """Refuse a further task that nothing is learned of: its head would stay as it was drawn, and be served."""
    counts = row_weights(feature_set, "train") > 0
    for name in config.tasks:
        if np.isnan(task_labels(feature_set, "train", name)[counts]).all():
            raise DataError(
                f"model.tasks: the label {name!r} is unknown in all {int(counts.sum()):,} training rows that count, "
                f"and nothing can be learned of it. Correct interactions.labels.{name}, or leave it out of model.tasks."
            )


def _calibrate_tasks(model: ClickModel, feature_set: FeatureSet, config: TrainConfig) -> None:
    """Each further label's, on the validation rows where it is known; none where those with a weight have one class."""
    calibrators = model.calibrators()
    for name in model.config.tasks:
        calibrators[name].set(Curve())
    users, weights = column(feature_set, "valid", "user"), row_weights(feature_set, "valid")
    for name, scores in predict_tasks(model, feature_set, "valid").items():
        labels = task_labels(feature_set, "valid", name)
        known = ~np.isnan(labels)
        if has_both_classes(labels, weights):
            calibrate(calibrators[name], config.calibration, scores[known], labels[known], users[known], weights[known])
