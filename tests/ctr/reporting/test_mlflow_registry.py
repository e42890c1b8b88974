"""The MLflow registry on a temporary SQLite store: a registered bundle predicts, and comes back whole."""

from __future__ import annotations

from pathlib import Path

import mlflow
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ctr.reporting.entries import PENDING, MoveAlias, now_ms
from ctr.reporting.mlflow_registry import Registry
from ctr.reporting.mlflow_runs import Tracker
from ctr.reporting.mlflow_store import MlflowStore
from ctr.reporting.outbox import Delivery, Outbox
from ctr.serving.bundle import ITEM_TABLE, RANKER, BundleMetadata, open_bundle, publish, seal
from features.errors import ConfigError, DataError
from tests.ctr.reporting.mlflow_server import free_port
from tests.ctr.reporting.test_mlflow_runs import artifacts

TABLE = np.array([[0.0, 0.0], [1.0, 2.0], [3.0, 4.0]], np.float32)


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    """One migrated store for the module: a fresh one takes more than a second."""
    return Tracker(tmp_path_factory.mktemp("work"))


@pytest.fixture
def registry(tracker: Tracker) -> Registry:
    return Registry(tracker.store.root)


def toy_bundle(path: Path, model_version: str = "run-1") -> Path:
    """A bundle whose graph sums a candidate's row of an external item table and adds the user.

    As the graph of an exported one, it lets whoever runs it give rows behind the table.
    """
    graph = helper.make_graph(
        [
            helper.make_node("Constant", [], ["last"], value=numpy_helper.from_array(np.array([1]))),
            helper.make_node("Concat", ["item_table", "item_delta"], ["all_rows"], axis=0),
            helper.make_node("Gather", ["all_rows", "candidate_item"], ["rows"]),
            helper.make_node("ReduceSum", ["rows", "last"], ["sums"], keepdims=0),
            helper.make_node("Cast", ["user_id"], ["user"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["sums", "user"], ["score"]),
        ],
        "toy",
        [
            helper.make_tensor_value_info("user_id", TensorProto.INT64, [1]),
            helper.make_tensor_value_info("candidate_item", TensorProto.INT64, ["candidates"]),
            helper.make_tensor_value_info("item_delta", TensorProto.FLOAT, ["later_items", 2]),
        ],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["candidates"])],
        [numpy_helper.from_array(TABLE, "item_table"), numpy_helper.from_array(TABLE[:1], "item_delta")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    metadata = BundleMetadata(
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
        seal(folder, metadata)
    return path


def test_a_registered_bundle_predicts_through_mlflow_and_comes_back_whole(
    tracker: Tracker, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = toy_bundle(tmp_path / "bundle")
    with tracker.run("quadrank-toy", "export", {}, {}):
        run_id = tracker.run_id
        version = registry.register(bundle, "quadrank-registered", tracker.run_id)
    registry.set_alias("quadrank-registered", "champion", version)

    # No pickle, and the table lies there once.
    names = artifacts(tracker, run_id, "model") | artifacts(tracker, run_id, "model/bundle")
    assert {name.removeprefix("model/") for name in names} >= {
        "model.onnx",
        "MLmodel",
        f"bundle/{ITEM_TABLE}",
    }
    assert not [name for name in names if name.endswith((".pkl", ".pickle", ".data"))]

    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracker.store.uri)
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

    back = registry.download_bundle("models:/quadrank-registered@champion", tmp_path / "serving")
    assert open_bundle(back).manifest == open_bundle(bundle).manifest


def test_an_alias_names_a_version_with_its_tags(tracker: Tracker, registry: Registry, tmp_path: Path) -> None:
    name = "quadrank-aliases"
    assert registry.get_alias(name, "champion") is None
    assert registry.find_version(name, "run-1") is None
    with tracker.run("quadrank-toy", "export", {}, {}):
        first = registry.register(toy_bundle(tmp_path / "one", "run-1"), name, tracker.run_id)
        again = registry.register(tmp_path / "one", name, tracker.run_id)
        second = registry.register(toy_bundle(tmp_path / "two", "run-2"), name, tracker.run_id)
    assert (first, again, second) == ("1", "2", "3")
    assert registry.find_version(name, "run-1") == "2"
    assert registry.version_tags(name, "champion") == {}
    registry.set_alias(name, "champion", first)
    registry.set_alias(name, "champion", second)
    found = registry.get_alias(name, "champion")
    assert found is not None and found.version == "3"
    assert {name: value for name, value in found.tags.items() if name != "registered_by"} == {
        "model_version": "run-2",
        "feature_set": "2026-01-01-00000000",
        "contract_fingerprint": "f" * 64,
        "git_revision": "abc123",
        "test_auc": "0.7125",
        "test_log_loss": "0.5",
    }


AHEAD = 4_000_000_000_000  # milliseconds: a clock that was ahead by decades when the alias moved last


def two_versions(registry: Registry, name: str) -> None:
    """A model whose alias `champion` was moved to version 1 by the clock that was ahead."""
    client = registry.store.client
    client.create_registered_model(name)
    for version in ("1", "2"):
        client.create_model_version(name, f"mlruns/{version}")
    client.set_registered_model_alias(name, "champion", "1")
    client.set_registered_model_tag(name, "champion.moved_ms", str(AHEAD))


def champion_of(registry: Registry, name: str) -> str | None:
    found = registry.get_alias(name, "champion")
    return None if found is None else found.version


def test_an_alias_moves_whatever_the_clock_was_when_it_moved_last(registry: Registry) -> None:
    two_versions(registry, "quadrank-ahead")
    assert registry.set_alias("quadrank-ahead", "champion", "2")
    assert champion_of(registry, "quadrank-ahead") == "2"


def test_what_waited_then_moves_it_on(registry: Registry, tmp_path: Path) -> None:
    """The moment of the clock that was ahead does not stay."""
    two_versions(registry, "quadrank-right-again")
    registry.set_alias("quadrank-right-again", "champion", "2")
    outbox = Outbox(tmp_path / "outbox")
    outbox.append(MoveAlias(name="quadrank-right-again", alias="champion", version="1", moment=now_ms() + 1))
    outbox.send(registry.store)
    assert champion_of(registry, "quadrank-right-again") == "1"


def test_an_alias_that_waited_and_was_moved_since_stays_and_that_is_said(
    registry: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two_versions(registry, "quadrank-late")
    outbox = Outbox(tmp_path / "outbox")
    outbox.append(MoveAlias(name="quadrank-late", alias="champion", version="2", moment=AHEAD - 1))
    outbox.send(registry.store)
    assert champion_of(registry, "quadrank-late") == "1"
    assert "models:/quadrank-late@champion was moved since: version 2, which waited" in capsys.readouterr().err


def test_an_alias_that_must_wait_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctr.reporting.mlflow_store.SECONDS_BETWEEN_KNOCKS", 0)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    delivery = Delivery(MlflowStore(tmp_path), Outbox(tmp_path / "outbox"))
    assert not Registry(delivery=delivery).set_alias("quadrank-away", "champion", "2")


def test_an_alias_moves_at_once_when_what_waited_before_it_could_be_sent(registry: Registry, tmp_path: Path) -> None:
    two_versions(registry, "quadrank-behind")
    delivery = Delivery(registry.store, Outbox(tmp_path / "outbox"))
    assert delivery.outbox is not None
    delivery.outbox.append(MoveAlias(name="quadrank-behind", alias="champion", version="1", moment=AHEAD))
    assert Registry(delivery=delivery).set_alias("quadrank-behind", "champion", "2")
    assert champion_of(registry, "quadrank-behind") == "2"


def test_a_changed_bundle_is_not_registered(tracker: Tracker, registry: Registry, tmp_path: Path) -> None:
    bundle = toy_bundle(tmp_path / "bundle")
    (bundle / ITEM_TABLE).write_bytes(b"other")
    with pytest.raises(DataError, match=ITEM_TABLE), tracker.run("quadrank-toy", "export", {}, {}):
        registry.register(bundle, "quadrank-changed", tracker.run_id)
    assert registry.get_alias("quadrank-changed", "champion") is None


@pytest.mark.parametrize(
    ("uri", "message"),
    [("quadrank@champion", "models:/NAME@ALIAS"), ("models:/absent@champion", "not in the registry")],
)
def test_a_wrong_model_address_says_what_is_right(registry: Registry, tmp_path: Path, uri: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        registry.download_bundle(uri, tmp_path)


def test_a_version_that_is_removed_takes_its_files_along_and_leaves_the_others(
    tracker: Tracker, registry: Registry, tmp_path: Path
) -> None:
    name, runs = "quadrank-removed", []
    for model_version in ("run-1", "run-2"):
        with tracker.run(name, model_version, tags={}, params={}):
            bundle = toy_bundle(tmp_path / model_version, model_version)
            version = registry.register(bundle, name, tracker.run_id)
            runs.append(tracker.run_id)
    registry.set_alias(name, "champion", version)
    newest, oldest = registry.versions(name)
    assert (newest.model_version, newest.run_id, newest.aliases) == ("run-2", runs[1], ("champion",))
    assert (oldest.model_version, oldest.aliases) == ("run-1", ())
    assert registry.artifact_bytes(runs[0]) > sum(path.stat().st_size for path in (tmp_path / "run-1").iterdir())
    assert registry.holds(name, oldest.version) and registry.holds(name, f"{PENDING}1")
    registry.remove_version(name, oldest, artifacts=True)
    assert not registry.holds(name, oldest.version) and registry.holds(name, newest.version)
    assert not registry.holds("quadrank-of-nobody", "1")
    assert registry.versions(name) == [newest]
    assert registry.artifact_bytes(runs[0]) == 0 and registry.artifact_bytes(runs[1]) > 0


def test_a_version_that_is_still_to_come_gets_no_tags(registry: Registry) -> None:
    """MLflow knows no such version: asked to tag it, it would raise."""
    registry.tag_version("quadrank-toy", f"{PENDING}1", {"gate": "passed"})
    with pytest.raises(mlflow.exceptions.MlflowException):
        registry.tag_version("quadrank-toy-of-nobody", "7", {"gate": "passed"})
