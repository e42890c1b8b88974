"""The best settings as a bundle that has learned from the validation rows, too."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from ctr.config import Preset, TrainConfig
from ctr.data.columns import column
from ctr.data.loader import Loader
from ctr.serving.bundle import open_bundle
from ctr.serving.ranker import Ranker
from ctr.training.checkpoint import CURVE, MODEL, Evaluation
from features.errors import ConfigError
from features.store.feature_set import FeatureSet
from features.store.pointer import NEWEST, follow
from pipelines.cli.commands import main
from pipelines.tune import refit
from pipelines.tune.outcome import Winner
from pipelines.tune.refit import TrainAndValid, bundle_best, epochs_of, require_bundle
from pipelines.tune.sweep import Sweep, run_sweep
from tests.ctr.reporting.mlflow_server import free_port
from tests.pipelines.tune.sweeping import LR, TINY, run, settings, space
from tests.toy import toy_feature_set

pytestmark = pytest.mark.usefixtures("place")


@pytest.fixture(scope="module")
def feature_set(tmp_path_factory: pytest.TempPathFactory) -> FeatureSet:
    return toy_feature_set(tmp_path_factory.mktemp("toy"), rows=3000)


def test_training_rows_are_those_of_both_windows_and_the_others_stay(feature_set: FeatureSet) -> None:
    both = TrainAndValid(feature_set)
    labels = {split: column(feature_set, split, "label") for split in ("train", "valid", "test")}
    found = column(both, "train", "label")
    assert np.array_equal(found, np.concatenate([labels["train"], labels["valid"]]))
    assert np.array_equal(column(both, "valid", "label"), labels["valid"])
    assert np.array_equal(column(both, "test", "label"), labels["test"])
    windows, window = feature_set.manifest.windows, both.manifest.windows["train"]
    assert (window.rows, window.positives) == (
        len(column(both, "train", "label")),
        column(both, "train", "label").sum(),
    )
    assert (window.first_time, window.last_time) == (windows["train"].first_time, windows["valid"].last_time)


def test_a_validation_row_keeps_its_history(feature_set: FeatureSet) -> None:
    """In stored order, the last training rows are the validation rows, each with the events before it."""
    both, valid = Loader(TrainAndValid(feature_set), "train", 9999), Loader(feature_set, "valid", 9999)
    (ours,), (theirs,) = list(both.epoch(0)), list(valid.epoch(0))
    theirs_NS = theirs.items_U[theirs.history_BS]
    ours_NS = ours.items_U[ours.history_BS][-len(theirs_NS) :, -theirs_NS.shape[1] :]
    assert int((theirs_NS > 0).sum()) > 100
    assert torch.equal(ours_NS, theirs_NS)
    assert torch.equal(ours.label_B[-len(theirs_NS) :], theirs.label_B)


def curve(folder: Path, losses: dict[float, float]) -> Path:
    folder.mkdir()
    lines = []
    for epoch, loss in losses.items():
        values = {
            "log_loss": loss,
            "auc": 0.5,
            "gauc_by_samples": 0.5,
            "group_auc": 0.5,
            "train_loss": 0.5,
            "train_click_loss": 0.5,
        }
        lines.append(Evaluation(step=int(epoch * 10), epoch=epoch, learning_rate=0.1, **values).model_dump_json())
    (folder / CURVE).write_text("\n".join(lines) + "\n")
    return folder


def test_epochs_are_those_at_which_the_trainings_were_best(tmp_path: Path) -> None:
    """2.5 and 4 are 3.25 in the mean, and 3 whole ones; a quarter is one."""
    first = curve(tmp_path / "a", {1.0: 0.6, 2.5: 0.4, 4.0: 0.5})
    second = curve(tmp_path / "b", {1.0: 0.6, 2.5: 0.5, 4.0: 0.4})
    assert epochs_of([first, second], Preset()) == 3
    third = curve(tmp_path / "d", {2.0: 0.5, 3.0: 0.4})
    assert epochs_of([first, third], Preset()) == 3, "2.75 is nearer to 3"
    assert epochs_of([curve(tmp_path / "c", {0.25: 0.4, 4.0: 0.5})], Preset()) == 1


def test_no_row_ends_the_training_on_both_windows(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class BegunError(Exception):
        """As far as the settings of the training."""

    begun: list[TrainConfig] = []

    def start(preset: Preset, *_: object) -> None:
        begun.append(preset.train)
        raise BegunError

    monkeypatch.setattr(refit.Job, "start", start)
    monkeypatch.setattr(refit, "build", lambda *_: SimpleNamespace(feature_set=SimpleNamespace(judged_by="test")))
    monkeypatch.setattr(refit, "TrainAndValid", lambda whole: whole)
    monkeypatch.setattr(refit, "epochs_of", lambda *_: 4)
    (tmp_path / MODEL).touch()
    found: Any = SimpleNamespace(winner=Winner(0, {}, 0.7, None, None, (tmp_path,)), search=space())
    with pytest.raises(BegunError):
        bundle_best(found, settings(work, "train.patience=3"))
    (train,) = begun
    assert (train.epochs, train.patience, train.controls) == (4, 0, "never")


def test_the_bundle_has_the_winners_calibration_and_is_measured_on_test_rows(work: Path) -> None:
    found = run(work, "bundled", 1)
    bundle = open_bundle(bundle_best(found, settings(work)))
    assert set(bundle.manifest.metrics) == {"test"}
    made = load_file(work / "runs" / bundle.manifest.model_version / MODEL)
    before = load_file(found.winner.folders[0] / MODEL)
    alike = {name: bool(torch.equal(made[name], one)) for name, one in before.items()}
    # Other rows gave it other weights; the validation rows, which it has seen, did not calibrate it.
    assert not all(alike.values())
    assert {name for name in alike if name.startswith("calibrator.")} == {
        f"calibrator.{name}" for name in ("slope", "shift", "knots", "slope_changes")
    }
    assert all(same for name, same in alike.items() if "calibrator" in name)
    assert follow(work / "bundles" / "simulated" / NEWEST) == bundle.path
    with pytest.raises(ConfigError, match="trainings of trial 0 are not on this machine"):
        for path in found.winner.folders[0].glob("*"):
            if path.is_file():
                path.unlink()
        bundle_best(found, settings(work))


def test_trees_are_refused_before_the_study(work: Path) -> None:
    with pytest.raises(ConfigError, match=r"--bundle-best: how many trees count"):
        require_bundle(settings(work, "model.base=boosting"))


def test_mlflow_that_is_away_is_told_before_the_feature_set_of_a_bundle_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """There are no raw files here."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    place = ["--root", str(tmp_path / "raw"), "--work", str(tmp_path), "--model", str(LR)]
    with pytest.raises(SystemExit) as ended:
        main(["tune", "--data", "conf/data/simulated.yaml", *place, "--study", "away", "--bundle-best"])
    assert ended.value.code == 75 and "the MLflow store does not answer" in capsys.readouterr().err


def test_test_rows_without_labels_are_refused_before_the_study(work: Path, tmp_path: Path) -> None:
    shutil.copytree(work / "raw", tmp_path / "raw")
    log = tmp_path / "raw" / "interactions.parquet"
    rows = pl.read_parquet(log).sort("timestamp")
    rows[:4800].write_parquet(log)
    rows[4800:5400].write_parquet(log.with_name("valid.parquet"))
    rows[5400:].drop("clicked").write_parquet(log.with_name("test.parquet"))
    with pytest.raises(ConfigError, match=r"--bundle-best: the test rows have no labels"):
        run_sweep(
            settings(tmp_path, "data.split={by: files, valid: valid.parquet, test: test.parquet}"),
            Sweep("unlabelled", space(), None, 1, require=refit.require_labels),
        )
    assert not (tmp_path / "runs" / "tune" / "unlabelled.journal").read_bytes()


def test_the_command_ends_with_a_bundle_that_newest_names(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (work / "space.yaml").write_text("schedule: none\nspace: {model.dropout: {low: 0.0, high: 0.4}}\n")
    arguments = [
        "tune",
        "--data",
        "conf/data/simulated.yaml",
        "--root",
        str(work / "raw"),
        "--work",
        str(work),
        "--model",
        str(LR),
        "--study",
        "command",
    ]
    arguments += ["--space", str(work / "space.yaml"), "--trials", "1", "--bundle-best", "--json"]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, *(part for one in TINY for part in ("--set", one))])
    assert ended.value.code == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert Path(told["bundle"]) == follow(work / "bundles" / "simulated" / NEWEST)
    assert Ranker.load(Path(told["bundle"])).replay() <= 1e-5  # it answers its golden requests
