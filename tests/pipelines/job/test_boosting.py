"""Trees from a log to a ranker: grown, saved, exported, served; alone, and under a network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file
from sklearn.ensemble import HistGradientBoostingClassifier

from ctr.config import ModelConfig, Preset, TrainConfig, load_preset
from ctr.data.columns import column, row_weights
from ctr.data.loader import Loader
from ctr.evaluation import boosting
from ctr.evaluation.boosting import tabular_control
from ctr.evaluation.metrics import log_loss
from ctr.model.click_model import ClickModel
from ctr.serving.bundle import open_bundle
from ctr.serving.ranker import Ranker
from ctr.training.boosting import grow_base
from ctr.training.checkpoint import CURVE, MODEL, Evaluation
from ctr.training.loop import FitResult, StopTraining, predict
from ctr.trees.feature_rows import feature_rows
from ctr.trees.growing import Rows, grow
from features.errors import ConfigError, DataError
from features.progress import silent
from features.store.feature_set import FeatureSet
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


def test_trees_of_another_fold_score_a_training_row(feature_set):
    model = new_model(TREES, feature_set, 1)
    base = grow_base(model, feature_set, UNCALIBRATED, silent)
    rows, users = feature_rows(feature_set, "train"), column(feature_set, "train", "user")
    labels, trees = column(feature_set, "train", "label"), int(model.trees.ensemble.used)
    for fold in range(5):
        booster = HistGradientBoostingClassifier(
            learning_rate=0.05, max_leaf_nodes=6, l2_regularization=1.0, max_iter=trees, early_stopping=False
        )
        others = np.array([user % 5 != fold for user in users])
        booster.fit(rows[others], labels[others])
        wanted = booster.decision_function(rows[~others])
        np.testing.assert_allclose(base["train"][~others], wanted, rtol=0, atol=1e-5)
    # All training rows teach the trees that score any other row, and that are served.
    valid = predict(model, feature_set, "valid")
    np.testing.assert_allclose(1 / (1 + np.exp(-base["valid"])), valid, rtol=0, atol=1e-6)
    # They know their own training rows better than a network should believe.
    own = predict(model, feature_set, "train")
    assert log_loss(labels, own) < log_loss(labels, 1 / (1 + np.exp(-base["train"]))) - 0.01


def test_batches_bring_the_logits_of_their_rows(feature_set):
    base = np.arange(feature_set.manifest.windows["train"].rows, dtype=np.float32)
    loader = Loader(feature_set, "train", 64, seed=3, shuffle=True, base=base)
    user, item = loader.column("user"), loader.column("item")
    seen = []
    for batch in loader.epoch(1):
        rows = batch.base_B.long().numpy()
        assert np.array_equal(batch.user_B.numpy(), user[rows])
        assert np.array_equal(batch.items_U[batch.target_B.long()].numpy(), item[rows])
        seen += rows.tolist()
    assert sorted(seen) == base.tolist()


def test_a_network_adds_to_the_logit_of_trees(feature_set, tmp_path):
    small = {"embedding_dim": 4, "attention_dim": 4, "layers": 1}
    settings = {"base": "boosting", "trees": 12, **small, "tasks": ("like",)}
    model = new_model(ModelConfig(**settings), feature_set, 1)
    config = TrainConfig(epochs=1, batch_size=64, calibration="none")
    fit_and_calibrate(model, feature_set, config, tmp_path / "run", progress=silent)
    alone = new_model(ModelConfig(**settings | {"base": "none"}), feature_set, 1)
    found = alone.load_state_dict(load_file(tmp_path / "run" / MODEL), strict=False)
    assert not found.missing_keys and all(name.startswith("trees.") for name in found.unexpected_keys)
    (batch,) = Loader(feature_set, "test", 10_000).epoch(0)
    with torch.inference_mode():
        both, network, trees = model.outputs(batch), alone.eval().outputs(batch), model.trees(batch, model.tables)
    assert trees.std() > 0.01
    torch.testing.assert_close(both.click_B, network.click_B + trees, rtol=0, atol=1e-5)
    # Another label than the click starts from nothing.
    torch.testing.assert_close(both.tasks["like"], network.tasks["like"], rtol=0, atol=1e-5)
    export(model, feature_set, tmp_path / "bundle")


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
