"""One model trained and calibrated: what `train`, `compare` and `ablate` share."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ctr.calibration import Calibrated, Curve, calibrate
from ctr.checkpoint import MODEL, save_tensors
from ctr.config import ModelConfig, TrainConfig
from ctr.models import build_model
from ctr.models.click_model import ClickModel
from ctr.tables import FrozenTables, frozen_tables
from ctr.trainer import Evaluation, FitResult, fit
from features.atomic import write_text
from features.feature_set import FeatureSet
from features.progress import progress as show_progress
from pipelines.evaluate import score_split

CALIBRATION = "calibration.json"


def new_model(
    config: ModelConfig, feature_set: FeatureSet, seed: int, tables: FrozenTables | None = None
) -> ClickModel:
    """A fresh model with the feature set's tables, or others in their form, attached."""
    torch.manual_seed(seed)
    model = build_model(config, feature_set.schema)
    model.attach(tables or frozen_tables(feature_set))
    return model


def fit_and_calibrate(
    model: ClickModel,
    feature_set: FeatureSet,
    config: TrainConfig,
    folder: Path,
    on_evaluation: Callable[[Evaluation], None] | None = None,
    resume: bool = False,
    progress: Any = show_progress,
) -> tuple[FitResult, Calibrated]:
    """Train into `folder`, then fit the calibration on the validation rows and save it with the weights.

    Raises:
        QuadRankError: as `ctr.trainer.fit`.
    """
    result = fit(model, feature_set, config, folder, on_evaluation=on_evaluation, resume=resume, progress=progress)
    model.calibrator.set(Curve())  # a finished run that is resumed has its calibration already
    valid = score_split(model, feature_set, "valid")
    calibrated = calibrate(model.calibrator, config.calibration, valid.scores, valid.labels)
    save_tensors(folder / MODEL, model.state_dict())
    write_text(folder / CALIBRATION, json.dumps(asdict(calibrated), indent=2))
    return result, calibrated
