"""Trees from a log to a ranker: grown, saved, exported, served; alone, and beside a network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file

from ctr.config import ModelConfig, Preset, TrainConfig, load_preset
from ctr.data.columns import column, row_weights
from ctr.data.loader import Loader
from ctr.evaluation import boosting
from ctr.evaluation.boosting import tabular_control
from ctr.evaluation.metrics import log_loss
from ctr.model.click_model import ClickModel
from ctr.model.outputs import Outputs
from ctr.serving.bundle import open_bundle
from ctr.serving.ranker import Ranker
from ctr.training.boosting import best_share
from ctr.training.checkpoint import CURVE, MODEL, Evaluation, save_tensors
from ctr.training.loop import FitResult, StopTraining, predict
from ctr.trees.growing import Rows, grow
from features.errors import ConfigError, DataError
from features.progress import silent
from features.store.feature_set import FeatureSet, SplitName
from pipelines.job.fitting import fit_and_calibrate, new_model
from tests.ctr.serving.shop import REQUEST, export
from tests.trained import built_feature_set

TREES = ModelConfig(architecture="boosting", base="boosting", tower="none", trees=30, tree_leaves=6, tree_patience=30)
UNCALIBRATED = TrainConfig(calibration="none")


@pytest.fixture(scope="module")
def feature_set(tmp_path_factory: pytest.TempPathFactory) -> FeatureSet:
    return built_feature_set(tmp_path_factory.mktemp("shop"), rows=400)


@pytest.fixture(scope="module")
def run(feature_set: FeatureSet, tmp_path_factory: pytest.TempPathFactory) -> tuple[ClickModel, FitResult, Path]:
    model, folder = new_model(TREES, feature_set, 1), tmp_path_factory.mktemp("run")
    result, _ = fit_and_calibrate(model, feature_set, UNCALIBRATED, folder, progress=silent)
    return model, result, folder


def test_the_preset_is_the_control_of_studies(run, feature_set, monkeypatch):
    preset = load_preset(Path("conf/model/boosting.yaml"), Path("conf/train.yaml"))
    assert preset.model == ModelConfig(architecture="boosting", base="boosting", tower="none")
    monkeypatch.setattr(boosting, "SETTINGS", TREES)
    control = tabular_control(feature_set, ["test"], seeds=1)["test"][0]
    np.testing.assert_allclose(predict(run[0], feature_set, "test"), control, rtol=0, atol=1e-6)
    assert control.std() > 0.01


def test_the_curve_holds_the_number_of_trees_that_count(run, feature_set):
    model, result, folder = run
    lines = (folder / CURVE).read_text().splitlines()
    curve = [Evaluation.model_validate_json(line) for line in lines]
    assert [one.step for one in curve] == sorted({one.step for one in curve}) and curve[-1].epoch == 1
    best = min(curve, key=lambda one: one.log_loss)
    assert best.step == int(model.trees.ensemble.used) and best.metrics() == result.best
    labels, weights = column(feature_set, "valid", "label"), row_weights(feature_set, "valid")
    assert best.log_loss == pytest.approx(log_loss(labels, predict(model, feature_set, "valid"), weights), abs=1e-6)
    # Training goes on to gain where validation does not.
    assert curve[-1].train_loss < curve[0].train_loss


def test_a_resumed_run_of_trees_removes_what_a_killed_one_was_writing(feature_set, tmp_path):
    for name in (CURVE, MODEL):
        (tmp_path / f".{name}-0a1b2c3d").write_text("hal")
    model = new_model(TREES, feature_set, 1)
    fit_and_calibrate(model, feature_set, UNCALIBRATED, tmp_path, resume=True, progress=silent)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["calibration.json", CURVE, MODEL]


def test_saved_trees_score_as_the_grown_ones(run, feature_set):
    again = new_model(TREES, feature_set, 2)
    again.load_state_dict(load_file(run[2] / MODEL))
    assert np.array_equal(predict(again, feature_set, "valid"), predict(run[0], feature_set, "valid"))
    with pytest.raises(ConfigError, match="a run has been here"):
        fit_and_calibrate(new_model(TREES, feature_set, 1), feature_set, UNCALIBRATED, run[2], progress=silent)
    fit_and_calibrate(again, feature_set, UNCALIBRATED, run[2], resume=True, progress=silent)
    assert np.array_equal(predict(again, feature_set, "valid"), predict(run[0], feature_set, "valid"))


def test_a_sweep_may_stop_at_a_point_of_the_curve(feature_set, tmp_path):
    seen: list[int] = []

    def stop(evaluation: Evaluation) -> None:
        seen.append(evaluation.step)
        raise StopTraining

    model = new_model(TREES, feature_set, 1)
    result, _ = fit_and_calibrate(model, feature_set, UNCALIBRATED, tmp_path, stop, progress=silent)
    assert result.stopped_by_callback and len(seen) == 1


def test_no_trees_grow_beside_a_network_that_a_sweep_stops(feature_set, tmp_path):
    def stop(evaluation: Evaluation) -> None:
        raise StopTraining

    small = ModelConfig(base="boosting", trees=12, embedding_dim=4, attention_dim=4, layers=1)
    model = new_model(small, feature_set, 1)
    config = TrainConfig(epochs=1, batch_size=64, calibration="none")
    result, _ = fit_and_calibrate(model, feature_set, config, tmp_path, stop, progress=silent)
    assert result.stopped_by_callback and int(model.trees.ensemble.used) == 0


def test_from_training_to_the_ranker(run, feature_set, tmp_path):
    export(run[0], feature_set, tmp_path / "bundle", scorer=True)  # compares graphs and model on 200 requests
    ranker = Ranker.load(tmp_path / "bundle")  # replays the golden requests
    assert len({one.score for one in ranker.rank(REQUEST).ranked}) > 1
    graph = onnx.load(tmp_path / "bundle" / "ranker.onnx", load_external_data=False).graph
    assert [node.domain for node in graph.node if node.op_type == "TreeEnsembleRegressor"] == ["ai.onnx.ml"]
    path = tmp_path / "bundle" / "ranker.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"ranker\.onnx: changed since"):
        open_bundle(tmp_path / "bundle")


def test_a_network_and_trees_share_the_logit(feature_set, tmp_path):
    small = {"embedding_dim": 4, "attention_dim": 4, "layers": 1}
    settings = {"base": "boosting", "trees": 12, **small, "tasks": ("like",)}
    config = TrainConfig(epochs=1, batch_size=64, calibration="none")
    found = {}
    for name, changes in {"both": {}, "network": {"base": "none"}, "trees": {"tower": "none", "tasks": ()}}.items():
        model = new_model(ModelConfig(**settings | changes), feature_set, 1)
        result, _ = fit_and_calibrate(model, feature_set, config, tmp_path / name, progress=silent)
        outputs = {split: _outputs(model, feature_set, split) for split in ("valid", "test")}
        found[name] = (model, result, outputs)
    both, result, of_both = found["both"]
    network, trees = found["network"][2], found["trees"][2]
    share = float(both.trees.share)
    labels, weights = column(feature_set, "valid", "label"), row_weights(feature_set, "valid")

    def mix(share: float, split: str) -> np.ndarray:
        return (1 - share) * network[split].click_B.numpy() + share * trees[split].click_B.numpy()

    # The network trained as it does without trees, and these grew as they do without a network.
    np.testing.assert_allclose(of_both["test"].click_B, mix(share, "test"), rtol=0, atol=1e-5)
    np.testing.assert_allclose(of_both["test"].tasks["like"], network["test"].tasks["like"], rtol=0, atol=1e-6)
    losses = [log_loss(labels, 1 / (1 + np.exp(-mix(one / 100, "valid"))), weights) for one in range(101)]
    assert share == pytest.approx(np.argmin(losses) / 100, abs=0.011)
    assert result.best["log_loss"] == pytest.approx(min(losses), abs=1e-6)
    assert result.curve == found["network"][1].curve
    export(both, feature_set, tmp_path / "bundle", scorer=True)  # compares graphs and model on 200 requests

    both.trees.share.fill_(0.375)
    np.testing.assert_allclose(_outputs(both, feature_set, "test").click_B, mix(0.375, "test"), rtol=0, atol=1e-5)
    both.trees.share.fill_(share)

    # Stopped after its trees were grown: the same again, whatever their share was.
    saved = load_file(tmp_path / "both" / MODEL) | {"trees.share": torch.tensor(0.5)}
    save_tensors(tmp_path / "both" / MODEL, saved)
    again = new_model(ModelConfig(**settings), feature_set, 1)
    resumed, _ = fit_and_calibrate(again, feature_set, config, tmp_path / "both", resume=True, progress=silent)
    assert resumed.best == result.best
    for name, values in both.state_dict().items():
        assert torch.equal(values, again.state_dict()[name]), name


def test_the_share_of_trees_by_hand():
    network, trees = np.array([2.0, -2.0, 0.0, 0.0]), np.array([0.0, 0.0, 2.0, -2.0])
    labels, weights = np.array([1.0, 0.0, 1.0, 0.0]), np.ones(4)
    rows = Rows(np.zeros((4, 1), np.float32), labels, weights)
    # Each knows what the other does not, and as well.
    assert best_share(network, trees, rows) == 0.5
    # Rows that count twice as much are the network's, which is then given more.
    heavy = replace(rows, weights=np.array([2.0, 2.0, 1.0, 1.0]))
    losses = [2 * np.log1p(np.exp(-2 * (1 - one))) + np.log1p(np.exp(-2 * one)) for one in np.arange(101) / 100]
    assert best_share(network, trees, heavy) == np.argmin(losses) / 100 < 0.5
    assert best_share(network, network, rows) == 0  # alike: no trees are needed
    assert best_share(-network, trees, rows) == 1


def _outputs(model: ClickModel, feature_set: FeatureSet, split: SplitName) -> Outputs:
    (batch,) = Loader(feature_set, split, 10_000).epoch(0)
    with torch.inference_mode():
        return model.eval().outputs(batch)


def test_rows_of_one_label_are_refused():
    one = Rows(np.zeros((40, 1), np.float32), np.ones(40), np.ones(40))
    both = Rows(one.features, np.arange(40) % 2, one.weights)
    with pytest.raises(DataError, match="the training rows have one label alone"):
        grow(one, both, TREES, 1)
    with pytest.raises(DataError, match="the validation rows have one label alone"):
        grow(both, one, TREES, 1)


def test_a_model_that_predicts_nothing_is_refused():
    with pytest.raises(ValueError, match="leaves nothing that predicts; set base: boosting"):
        Preset.model_validate({"model": {"tower": "none"}})
    with pytest.raises(ValueError, match="trees predict the click alone, not 'like'"):
        Preset.model_validate({"model": {"tower": "none", "base": "boosting", "tasks": ["like"]}})
