"""MLflow tracking on a temporary SQLite store: runs, failures, and a registered bundle that predicts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import onnx
import pytest
from matplotlib.figure import Figure
from onnx import TensorProto, helper, numpy_helper

from ctr.reporting.mlflow_runs import Tracker
from ctr.serving.bundle import ITEM_TABLE, RANKER, Facts, open_bundle, publish, seal
from features.errors import ConfigError, DataError

TABLE = np.array([[0.0, 0.0], [1.0, 2.0], [3.0, 4.0]], np.float32)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One migrated store for the module: a fresh one takes more than a second."""
    root = tmp_path_factory.mktemp("work")
    with Tracker(root).run("quadrank-toy", "warm up", {}, {}):
        pass
    return root


@pytest.fixture
def tracker(store: Path, monkeypatch: pytest.MonkeyPatch) -> Tracker:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Tracker(store)


def toy_bundle(path: Path, model_version: str = "run-1") -> Path:
    """A bundle whose graph sums a candidate's row of an external item table and adds the user."""
    graph = helper.make_graph(
        [
            helper.make_node("Constant", [], ["last"], value=numpy_helper.from_array(np.array([1]))),
            helper.make_node("Gather", ["item_table", "candidate_item"], ["rows"]),
            helper.make_node("ReduceSum", ["rows", "last"], ["sums"], keepdims=0),
            helper.make_node("Cast", ["user_id"], ["user"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["sums", "user"], ["score"]),
        ],
        "toy",
        [
            helper.make_tensor_value_info("user_id", TensorProto.INT64, [1]),
            helper.make_tensor_value_info("candidate_item", TensorProto.INT64, ["candidates"]),
        ],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["candidates"])],
        [numpy_helper.from_array(TABLE, "item_table")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    facts = Facts(
        name="toy",
        model_version=model_version,
        architecture="qin",
        fingerprint="f" * 64,
        feature_set="2026-01-01-00000000",
        metrics={"test": {"auc": 0.7125, "log_loss": 0.5}},
        controls={},
        windows={},
        inputs={},
        git_revision="abc123",
        versions={},
        created="2026-01-01T00:00:00+00:00",
    )
    with publish(path) as folder:
        onnx.save_model(model, folder / RANKER, save_as_external_data=True, location=ITEM_TABLE, size_threshold=0)
        seal(folder, facts)
    return path


def artifacts(tracker: Tracker, run_id: str, folder: str | None = None) -> set[str]:
    return {found.path for found in tracker._client.list_artifacts(run_id, folder)}


def test_a_run_holds_its_params_curves_tags_plots_and_files(tracker: Tracker, tmp_path: Path) -> None:
    note = tmp_path / "config.json"
    note.write_text("{}")
    params = {"train": {"epochs": 3, "deep": {"er": None}}, "data": "toy", **{f"p{i}": i for i in range(150)}}
    with tracker.run("quadrank-toy", "first", {"git_revision": "abc"}, params):
        run_id = tracker.run_id
        tracker.log_curve_point(10, {"auc": 0.6, "log_loss": 0.7})
        tracker.log_curve_point(20, {"auc": 0.65, "log_loss": 0.6})
        tracker.log_metrics({"test.auc": 0.64})
        tracker.log_figure(Figure(), "curve.png")
        tracker.log_file(note, "run")
        tracker.set_tag("gate", "passed")

    run = tracker._client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "first"
    assert {key: run.data.params[key] for key in ("train.epochs", "train.deep.er", "data", "p149")} == {
        "train.epochs": "3",
        "train.deep.er": "None",
        "data": "toy",
        "p149": "149",
    }
    assert run.data.metrics["test.auc"] == 0.64
    curve = tracker._client.get_metric_history(run_id, "auc")
    assert [(point.step, point.value) for point in curve] == [(10, 0.6), (20, 0.65)]
    assert run.data.tags["gate"] == "passed"
    assert run.data.tags["mlflow.source.git.commit"] == "abc"
    assert artifacts(tracker, run_id) == {"plots", "run"}
    assert artifacts(tracker, run_id, "plots") == {"plots/curve.png"}
    assert (tracker.root / "mlartifacts" / "quadrank-toy" / run_id / "artifacts/run/config.json").is_file()


def test_a_child_run_nests_under_its_parent(tracker: Tracker) -> None:
    with tracker.run("quadrank-toy", "sweep", {}, {}):
        parent = tracker.run_id
    with tracker.run("quadrank-toy", "trial", {}, {}, parent_run_id=parent):
        child = tracker.run_id
    tags = tracker._client.get_run(child).data.tags
    assert tags["mlflow.parentRunId"] == parent
    assert "mlflow.parentRunId" not in tracker._client.get_run(parent).data.tags


def test_a_finished_run_is_opened_again_to_add_to_it(tracker: Tracker) -> None:
    with tracker.run("quadrank-toy", "sweep", {}, {}):
        run_id = tracker.run_id
    with tracker.resume(run_id):
        assert tracker._client.get_run(run_id).info.status == "RUNNING"
        tracker.log_metrics({"best.auc": 0.8})
    run = tracker._client.get_run(run_id)
    assert (run.info.status, run.data.metrics["best.auc"]) == ("FINISHED", 0.8)


@pytest.mark.parametrize(("error", "status"), [(DataError("no such file"), "FAILED"), (KeyboardInterrupt(), "KILLED")])
def test_what_breaks_a_run_marks_it(tracker: Tracker, error: BaseException, status: str) -> None:
    with pytest.raises(type(error)), tracker.run("quadrank-toy", "broken", {}, {}):
        run_id = tracker.run_id
        raise error
    run = tracker._client.get_run(run_id)
    assert run.info.status == status
    assert run.data.tags.get("error") == ("DataError: no such file" if status == "FAILED" else None)


def test_logging_outside_a_run_is_refused(tracker: Tracker) -> None:
    with pytest.raises(RuntimeError, match="no MLflow run is open"):
        tracker.log_metrics({"auc": 0.5})


def test_a_registered_bundle_predicts_through_mlflow_and_comes_back_whole(
    tracker: Tracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = toy_bundle(tmp_path / "bundle")
    with tracker.run("quadrank-toy", "export", {}, {}):
        run_id = tracker.run_id
        version = tracker.register(bundle, "quadrank-registered")
    tracker.set_alias("quadrank-registered", "champion", version)

    # No pickle, and the table lies there once.
    names = artifacts(tracker, run_id, "model") | artifacts(tracker, run_id, "model/bundle")
    assert {name.removeprefix("model/") for name in names} >= {
        "model.onnx",
        "MLmodel",
        f"bundle/{ITEM_TABLE}",
    }
    assert not [name for name in names if name.endswith((".pkl", ".pickle", ".data"))]

    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracker.uri)
    loaded = mlflow.pyfunc.load_model("models:/quadrank-registered@champion")
    # By hand: row 1 sums to 3, row 2 to 7, and the user adds 10.
    feed = {"user_id": np.array([10]), "candidate_item": np.array([2, 1, 0])}
    np.testing.assert_array_equal(loaded.predict(feed)["score"], np.float32([17, 13, 10]))
    with pytest.raises(mlflow.exceptions.MlflowException, match=r"Shape of input \(2,\)"):
        loaded.predict({**feed, "user_id": np.array([10, 11])})
    shapes = {tensor.name: tensor.shape for tensor in loaded.metadata.signature.inputs.inputs}
    assert shapes == {"user_id": (1,), "candidate_item": (-1,)}
    assert loaded.metadata.get_output_schema().inputs[0].name == "score"
    raw = mlflow.onnx.load_model("models:/quadrank-registered@champion")
    np.testing.assert_array_equal(numpy_helper.to_array(raw.graph.initializer[0]), TABLE)
    example = loaded.metadata.load_input_example(
        mlflow.artifacts.download_artifacts("models:/quadrank-registered@champion")
    )
    assert loaded.predict(example)["score"].tolist() == [4.0, 4.0]

    back = tracker.download_bundle("models:/quadrank-registered@champion", tmp_path / "serving")
    assert open_bundle(back).manifest == open_bundle(bundle).manifest


def test_an_alias_names_a_version_with_its_tags(tracker: Tracker, tmp_path: Path) -> None:
    name = "quadrank-aliases"
    assert tracker.get_alias(name, "champion") is None
    assert tracker.find_version(name, "run-1") is None
    with tracker.run("quadrank-toy", "export", {}, {}):
        first = tracker.register(toy_bundle(tmp_path / "one", "run-1"), name)
        again = tracker.register(tmp_path / "one", name)
        second = tracker.register(toy_bundle(tmp_path / "two", "run-2"), name)
    assert (first, again, second) == ("1", "2", "3")
    assert tracker.find_version(name, "run-1") == "2"
    assert tracker.version_tags(name, "champion") == {}
    tracker.set_alias(name, "champion", first)
    tracker.set_alias(name, "champion", second)
    found = tracker.get_alias(name, "champion")
    assert found is not None and found.version == "3"
    assert found.tags == {
        "model_version": "run-2",
        "feature_set": "2026-01-01-00000000",
        "contract_fingerprint": "f" * 64,
        "git_revision": "abc123",
        "test_auc": "0.7125",
        "test_log_loss": "0.5",
    }


def test_a_changed_bundle_is_not_registered(tracker: Tracker, tmp_path: Path) -> None:
    bundle = toy_bundle(tmp_path / "bundle")
    (bundle / ITEM_TABLE).write_bytes(b"other")
    with pytest.raises(DataError, match=ITEM_TABLE), tracker.run("quadrank-toy", "export", {}, {}):
        tracker.register(bundle, "quadrank-changed")
    assert tracker.get_alias("quadrank-changed", "champion") is None


@pytest.mark.parametrize(
    ("uri", "message"),
    [("quadrank@champion", "models:/NAME@ALIAS"), ("models:/absent@champion", "not in the registry")],
)
def test_a_wrong_model_address_says_what_is_right(tracker: Tracker, tmp_path: Path, uri: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tracker.download_bundle(uri, tmp_path)


def test_a_store_that_cannot_be_used_names_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nosuchscheme://host/db")
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI"), Tracker(tmp_path).run("toy", "run", {}, {}):
        pass


def test_processes_share_a_fresh_store_without_a_word(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from ctr.reporting.mlflow_runs import Tracker\n"
        "with Tracker(Path(sys.argv[1])).run('quadrank-toy', 'worker', {}, {'a': 1}) as tracker:\n"
        "    tracker.log_metrics({'m': 1.0})"
    )
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(3)
    ]
    said = [worker.communicate(timeout=120)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0, 0], said
    assert said == ["", "", ""]
    tracker = Tracker(tmp_path)
    (experiment,) = tracker._client.search_experiments(filter_string="name = 'quadrank-toy'")
    assert len(tracker._client.search_runs([experiment.experiment_id])) == 3


def test_importing_the_tracker_does_not_load_mlflow() -> None:
    code = "import sys, ctr.reporting.mlflow_runs; print('mlflow' in sys.modules, 'matplotlib' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "False False"


def test_resuming_an_unknown_run_says_the_way_out(tracker: Tracker) -> None:
    words = r"MLflow run 0123abcd: not in the tracking store .* start a new run"
    with pytest.raises(ConfigError, match=words), tracker.resume("0123abcd"):
        pass
