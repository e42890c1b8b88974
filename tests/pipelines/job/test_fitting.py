"""A model trained and calibrated: on which rows, how often, from which start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ctr.config import ModelConfig, Preset, TrainConfig
from ctr.data.columns import row_weights
from ctr.model.calibrator import Calibrator, Curve
from ctr.training.calibrate import fit_curve, logits_of
from ctr.training.warm.parent import Parent
from features.encoding.encoder import Encoder
from features.errors import ConfigError, DataError
from features.progress import silent
from features.store.feature_set import FeatureSet, Sampling
from pipelines.job import fitting
from pipelines.job.evaluate import score_split
from pipelines.job.fitting import CALIBRATION, fit_and_calibrate, new_model, require_fit
from tests.grown import grown_feature_set
from tests.toy import toy_feature_set

MODEL = ModelConfig(
    embedding_dim=4, vector_dim=4, attention_dim=4, layers=1, attention="mean", tower="linear"
)  # fmt: skip
TRAIN = TrainConfig(
    batch_size=64, epochs=2, learning_rate=0.05, evaluations_per_epoch=1, patience=0, device="cpu", seed=3
)
UNKNOWN = "CASE WHEN clicked > 1 THEN 1 END"  # a label that no row has


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


def test_evaluations_and_progress_are_told(feature_set: FeatureSet, tmp_path: Path) -> None:
    steps, bars = [], []

    def bar(*settings: Any, **named: Any) -> Any:
        bars.append(settings)
        return silent(*settings, **named)

    model = new_model(MODEL, feature_set, TRAIN.seed)
    fit_and_calibrate(model, feature_set, TRAIN, tmp_path, lambda found: steps.append(found.step), progress=bar)
    assert len(steps) == 2 and steps[1] == 2 * steps[0]
    assert bars


class Tasks:
    """A model of two further labels, of which only the calibrators are asked."""

    config = ModelConfig(tasks=("like", "share"))
    network, trees = "not asked", None

    def __init__(self) -> None:
        self.by_name = {name: Calibrator() for name in self.config.tasks}
        for calibrator in self.by_name.values():
            calibrator.set(Curve(slope=3.0))  # of a training that was resumed

    def calibrators(self) -> dict[str, Calibrator]:
        return self.by_name


def test_tasks_are_calibrated_on_validation_rows_whose_label_is_known(
    feature_set: FeatureSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = feature_set.manifest.windows["valid"].rows
    draw = np.random.default_rng(0)
    scores = draw.uniform(0.05, 0.6, rows)
    likes = np.where(np.arange(rows) % 4 == 0, np.nan, draw.random(rows) < scores / 2)
    labels = {"like": likes, "share": np.zeros(rows)}
    asked: list[tuple[object, str]] = []

    def predict_tasks(model: object, of: object, split: str) -> dict[str, np.ndarray]:
        asked.append((of, split))
        return {"like": scores, "share": scores}

    def task_labels(of: object, split: str, name: str) -> np.ndarray:
        asked.append((of, split))
        return labels[name]

    monkeypatch.setattr(fitting, "predict_tasks", predict_tasks)
    monkeypatch.setattr(fitting, "task_labels", task_labels)
    model: Any = Tasks()
    fitting._calibrate_tasks(model, feature_set, TRAIN)
    assert asked == [(feature_set, "valid")] * 3
    known = ~np.isnan(likes)
    expected = fit_curve("platt", logits_of(scores[known]), likes[known], row_weights(feature_set, "valid")[known])
    like, share = model.by_name["like"], model.by_name["share"]
    assert (like.slope.item(), like.shift.item()) == pytest.approx((expected.slope, expected.shift), rel=1e-4)
    assert expected.shift < -0.3
    # Nobody shared anything: nothing to fit, and nothing is left of an earlier curve.
    assert (share.slope.item(), share.shift.item()) == (1.0, 0.0)


def test_a_task_whose_rows_of_one_class_weigh_nothing_is_not_calibrated(
    feature_set: FeatureSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = feature_set.manifest.windows["valid"].rows
    scores, liked = np.linspace(0.1, 0.6, rows), np.arange(rows) % 2.0
    monkeypatch.setattr(fitting, "predict_tasks", lambda *_: {"like": scores, "share": scores})
    monkeypatch.setattr(fitting, "task_labels", lambda *_: liked)
    monkeypatch.setattr(fitting, "row_weights", lambda *_: 1 - liked)
    model: Any = Tasks()
    fitting._calibrate_tasks(model, feature_set, TRAIN)
    like = model.by_name["like"]
    assert (like.slope.item(), like.shift.item()) == (1.0, 0.0)


def test_tasks_beside_negatives_of_known_rate_are_refused(
    feature_set: FeatureSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class TrainedError(Exception):
        pass

    def fit(*settings: Any, **named: Any) -> None:
        raise TrainedError

    def drawn(rate: float | None) -> FeatureSet:
        sampling = Sampling(drawn=10, per_positive=1.0, rate=rate)
        return FeatureSet(feature_set.path, feature_set.manifest.model_copy(update={"sampling": sampling}))

    monkeypatch.setattr(fitting, "fit", fit)
    model: Any = Tasks()
    with pytest.raises(ConfigError, match=r"model\.tasks: like, share cannot be learned beside drawn negatives"):
        fit_and_calibrate(model, drawn(0.1), TRAIN, tmp_path, progress=silent)
    for feature_set_without_rate in (drawn(None), feature_set):
        with pytest.raises(TrainedError):
            fit_and_calibrate(model, feature_set_without_rate, TRAIN, tmp_path, progress=silent)


def test_a_task_whose_label_is_unknown_in_all_training_rows_is_refused(tmp_path: Path) -> None:
    """Its head would stay as it was drawn, and a server would answer with its probabilities."""
    labels = {"bought": UNKNOWN, "liked": "clicked"}
    feature_set = grown_feature_set(tmp_path, 1, {"interactions": {"labels": labels}})
    both = MODEL.model_copy(update={"tasks": ("liked", "bought")})
    words = (
        r"model\.tasks: the label 'bought' is unknown in all \d+ training rows that count, and nothing can be learned"
    )
    with pytest.raises(DataError, match=words):
        require_fit(Preset(model=both, train=TRAIN), feature_set)
    require_fit(Preset(model=MODEL.model_copy(update={"tasks": ("liked",)}), train=TRAIN), feature_set)


def test_a_warm_start_may_wait_for_the_labels_of_a_task(tmp_path: Path) -> None:
    """The head goes on as its parent left it."""
    labels = {"bought": UNKNOWN}
    days = [grown_feature_set(tmp_path, day, {"interactions": {"labels": labels}}) for day in (1, 2)]
    config = MODEL.model_copy(update={"tasks": ("bought",)})
    model = new_model(config, days[0], TRAIN.seed)
    parent = Parent("monday", 0, model, model.state_dict(), None, days[0], Encoder.load(days[0].path))
    require_fit(Preset(model=config, train=TRAIN), days[1], parent)
