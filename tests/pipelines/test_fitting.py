"""A model trained and calibrated: on which rows, how often, from which start."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ctr.calibration import Curve
from ctr.config import ModelConfig, TrainConfig
from features.feature_set import FeatureSet
from features.progress import silent
from pipelines.evaluate import score_split
from pipelines.fitting import CALIBRATION, fit_and_calibrate, new_model
from tests.toy import toy_feature_set

MODEL = ModelConfig(
    embedding_dim=4, vector_dim=4, attention_dim=4, layers=1, attention="mean", tower="linear"
)  # fmt: skip
TRAIN = TrainConfig(
    batch_size=64, epochs=2, learning_rate=0.05, evaluations_per_epoch=1, patience=0, device="cpu", seed=3
)


@pytest.fixture(scope="module")
def feature_set(tmp_path_factory: pytest.TempPathFactory) -> FeatureSet:
    return toy_feature_set(tmp_path_factory.mktemp("toy"), rows=1000, users=40)


@pytest.fixture(scope="module")
def run(feature_set: FeatureSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    fit_and_calibrate(new_model(MODEL, feature_set, TRAIN.seed), feature_set, TRAIN, folder, progress=silent)
    return folder


def test_a_seed_is_a_start(feature_set: FeatureSet) -> None:
    one, same, other = (new_model(MODEL, feature_set, seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(value, same[name]) for name, value in one.items())
    assert [name for name, value in one.items() if not torch.equal(value, other[name])]


def test_two_trainings_of_one_seed_are_equal(feature_set: FeatureSet, run: Path, tmp_path: Path) -> None:
    torch.manual_seed(99)  # whatever was drawn before
    fit_and_calibrate(new_model(MODEL, feature_set, TRAIN.seed), feature_set, TRAIN, tmp_path, progress=silent)
    one, other = (load_file(folder / "model.safetensors") for folder in (run, tmp_path))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_finished_training_that_is_resumed_is_calibrated_once(feature_set: FeatureSet, run: Path) -> None:
    calibrated = json.loads((run / CALIBRATION).read_text())
    before = load_file(run / "model.safetensors")
    model = new_model(MODEL, feature_set, TRAIN.seed)
    _, again = fit_and_calibrate(model, feature_set, TRAIN, run, resume=True, progress=silent)
    assert again.before == pytest.approx(calibrated["before"], abs=1e-9)
    assert again.after == pytest.approx(calibrated["after"], abs=1e-9)
    assert all(torch.equal(value, before[name]) for name, value in load_file(run / "model.safetensors").items())
    # Of the uncalibrated model the curve did something, else this shows nothing.
    scores = score_split(model, feature_set, "valid").scores
    model.calibrator.set(Curve())
    assert np.abs(scores - score_split(model, feature_set, "valid").scores).max() > 1e-3
