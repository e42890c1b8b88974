"""`quadrank publish`: what other programs load of it scores as the bundle does, and what does not is not published."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import tritonclient
from google.protobuf import text_format
from onnx import numpy_helper
from rich.console import Console

from ctr.config import ModelConfig
from ctr.export.layouts import standalone
from ctr.serving.bundle import open_bundle
from ctr.serving.items.new_items import items_of_json
from ctr.serving.items.upsert import upsert_items
from ctr.serving.ranker import Ranker, graph_inputs
from features.encoding.request import parse_request
from features.errors import ConfigError, DataError, NumericalError
from features.store.pointer import NEWEST, point_at
from pipelines.cli.commands import main
from pipelines.serving.publish import LAYOUTS, publish_bundle
from tests.ctr.serving.items.worlds import FIRST_NEW, NEW, new_json, world
from tests.ctr.serving.shop import export
from tests.trained import random_model

UPSERTED = "run-1+items.1"
REQUEST = {"user": "u3", "history": [101, 107], "candidates": [110, 111, *range(FIRST_NEW, FIRST_NEW + NEW), 999]}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`run-1`, what became of it by an upsert, and the pointer to the first."""
    folder = tmp_path_factory.mktemp("shop")
    feature_set = world(folder, whole=False).feature_set
    parts = {"match_features": True, "tasks": ("like",)}
    model = random_model(feature_set, ModelConfig(embedding_dim=4, attention_dim=4, **parts), seed=4)
    exported = export(model, feature_set, folder / "bundles" / "run-1").path
    upsert_items(exported, lambda encoder: items_of_json(encoder, {"items": new_json()}, 1000))
    point_at(exported.parent, "run-1")
    return exported.parent


def published(bundle: Path, to: Path, layout: str) -> dict[str, Any]:
    return publish_bundle(bundle, to, layout, Console(quiet=True))


def logit(probability: Any) -> np.ndarray:
    values = np.asarray(probability, np.float64)
    return np.log(values / (1 - values))


def golden(bundle: Path) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
    """Encoded inputs of each golden request, and logits of click and like that torch gave, [N, 2]."""
    ranker = Ranker.load(bundle)
    for case in json.loads((bundle / "golden.json").read_text())["cases"]:
        encoded = ranker.encode(parse_request(case["request"], ranker.encoder.contract))
        yield graph_inputs(encoded), logit(np.stack([case["scores"], case["tasks"]["like"]], axis=-1))


def later(bundle: Path) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The same of a request that names upserted items; its logits are those of `quadrank rank`."""
    ranker = Ranker.load(bundle)
    request = REQUEST | {"context": {"device": "tv", "load": 1.0}}
    by_item = {one.item: [one.score, one.tasks["like"]] for one in ranker.rank(request).ranked}
    encoded = ranker.encode(parse_request(request, ranker.encoder.contract))
    return graph_inputs(encoded), logit([by_item[item] for item in REQUEST["candidates"]])


def model_config(path: Path) -> Any:
    """`config.pbtxt` as Triton's own definition reads it; the package around that definition needs grpcio."""
    file = Path(tritonclient.__path__[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return text_format.Parse(path.read_text(), module.ModelConfig())


@pytest.mark.parametrize("version", ["run-1", UPSERTED])
def test_triton_finds_a_model_that_scores_as_torch_did(bundles: Path, tmp_path: Path, version: str) -> None:
    summary = published(bundles / version, tmp_path / "models", "triton")
    folder = tmp_path / "models" / "shop"
    assert summary["published"] == str(folder) and 0 < summary["max_logit_difference"] < 1e-5
    config = model_config(folder / "config.pbtxt")
    assert (config.name, config.max_batch_size) == ("shop", 0)
    assert (config.platform, config.backend) == ("onnxruntime_onnx", "onnxruntime")
    assert config.parameters["model_version"].string_value == version
    graph = onnx.load(folder / "1" / "model.onnx", load_external_data=False).graph
    if version == "run-1":
        as_exported = onnx.load(bundles / version / "ranker.onnx", load_external_data=False).graph
        assert [one.name for one in as_exported.input] == [*(one.name for one in graph.input), "item_delta"]
    types = {onnx.TensorProto.INT64: "TYPE_INT64", onnx.TensorProto.FLOAT: "TYPE_FP32"}
    for told, values in ((config.input, graph.input), (config.output, graph.output)):
        names = told[0].DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number
        assert [(one.name, names[one.data_type].name, list(one.dims)) for one in told] == [
            (
                one.name,
                types[one.type.tensor_type.elem_type],
                [axis.dim_value or -1 for axis in one.type.tensor_type.shape.dim],
            )
            for one in values
        ]
    session = ort.InferenceSession(folder / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    cases = [*golden(bundles / "run-1"), *([later(bundles / UPSERTED)] if version == UPSERTED else [])]
    for feed, wanted_NH in cases:
        asked = [one.name for one in config.output]
        scores_HN = session.run(asked, {one.name: feed[one.name] for one in config.input})
        np.testing.assert_allclose(logit(scores_HN).T, wanted_NH, rtol=1e-5, atol=2e-5)
    assert len(cases) > 8


@pytest.mark.parametrize("version", ["run-1", UPSERTED])
def test_mlflow_loads_a_model_that_scores_as_torch_did(bundles: Path, tmp_path: Path, version: str) -> None:
    summary = published(bundles / version, tmp_path / "model", "mlflow")
    folder = tmp_path / "model"
    assert summary["published"] == str(folder) and 0 < summary["max_logit_difference"] < 1e-5
    model = mlflow.pyfunc.load_model(str(folder))
    inputs = {one.name: (one.type, one.shape) for one in model.metadata.get_input_schema().inputs}
    told = open_bundle(bundles / version).manifest.inputs
    assert {name: list(shape) for name, (_, shape) in inputs.items()} == {
        name: [axis if isinstance(axis, int) else -1 for axis in shape] for name, shape in told.items()
    }
    cases = [*golden(bundles / "run-1"), *([later(bundles / UPSERTED)] if version == UPSERTED else [])]
    for feed, wanted_NH in cases:
        answer = model.predict({name: feed[name] for name in inputs})
        scores_NH = np.stack([answer["score"], answer["score_like"]], axis=-1)
        np.testing.assert_allclose(logit(scores_NH), wanted_NH, rtol=1e-5, atol=2e-5)
    # The proto has its tables, though the upserted bundle shares its files with the one before.
    tables = {one.name: numpy_helper.to_array(one) for one in mlflow.onnx.load_model(str(folder)).graph.initializer}
    assert tables["item_table"].tobytes() == (bundles / version / "item_table.bin").read_bytes()
    assert len(tables["item_delta"]) == (NEW if version == UPSERTED else 1)
    assert Ranker.load(folder / "bundle").model_version == version


def test_a_copy_is_the_bundle_and_the_newest_of_its_folder(bundles: Path, tmp_path: Path) -> None:
    to = tmp_path / "shared"
    for version in ("run-1", UPSERTED):
        summary = published(bundles / version, to, "folder")
        assert Ranker.load(to / NEWEST).model_version == version == summary["model_version"]
    names = {file.relative_to(bundles / UPSERTED) for file in (bundles / UPSERTED).rglob("*") if file.is_file()}
    assert names == {file.relative_to(to / UPSERTED) for file in (to / UPSERTED).rglob("*") if file.is_file()}
    for name in names:
        assert (to / UPSERTED / name).read_bytes() == (bundles / UPSERTED / name).read_bytes()
        assert (to / UPSERTED / name).stat().st_nlink == 1
    assert summary["bytes"] == sum((to / UPSERTED / name).stat().st_size for name in names)


@pytest.mark.parametrize(
    ("layout", "module"), [("triton", "ctr.export.layouts.triton"), ("mlflow", "ctr.reporting.mlflow_flavor")]
)
def test_a_graph_that_scores_otherwise_is_not_published(
    bundles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, module: str
) -> None:
    def wrong(bundle: Path) -> Any:
        model = standalone.standalone_graph(bundle)
        weight = max((one for one in model.graph.initializer if one.raw_data), key=lambda one: len(one.raw_data))
        weight.CopyFrom(numpy_helper.from_array(1.1 * numpy_helper.to_array(weight), weight.name))
        return model

    monkeypatch.setattr(f"{module}.standalone_graph", wrong)
    with pytest.raises(
        NumericalError, match=r"(shop|to): not published, .*golden request 'events as the log has them' scores"
    ):
        published(bundles / "run-1", tmp_path / "to", layout)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("layout", "module"), [("triton", "ctr.export.layouts.triton"), ("mlflow", "ctr.reporting.mlflow_flavor")]
)
def test_a_graph_with_other_rows_of_upserted_items_is_not_published(
    bundles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, module: str
) -> None:
    def wrong(bundle: Path) -> Any:
        model = standalone.standalone_graph(bundle)
        (delta,) = (one for one in model.graph.initializer if one.name == "item_delta")
        delta.CopyFrom(numpy_helper.from_array(np.zeros(tuple(delta.dims), np.float32), "item_delta"))
        return model

    monkeypatch.setattr(f"{module}.standalone_graph", wrong)
    with pytest.raises(NumericalError, match=r"(shop|to): not published, .*upserted items score"):
        published(bundles / UPSERTED, tmp_path / "to", layout)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_table_that_was_copied_wrongly_is_not_published(
    bundles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    copyfile = shutil.copyfile

    def flipped(source: Path, target: Path) -> None:
        copyfile(source, target)
        if Path(target).name == "item_table.bin":
            content = bytearray(Path(target).read_bytes())
            content[5] ^= 1
            Path(target).write_bytes(content)

    monkeypatch.setattr("ctr.export.layouts.files.shutil.copyfile", flipped)
    with pytest.raises(DataError, match=r"item_table\.bin: its copy is not what was exported"):
        published(bundles / "run-1", tmp_path / "to", layout)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_there_stays(bundles: Path, tmp_path: Path, layout: str) -> None:
    taken = {"folder": tmp_path / "run-1", "triton": tmp_path / "shop", "mlflow": tmp_path}[layout]
    taken.mkdir(exist_ok=True)
    (taken / "mine").write_text("here")
    with pytest.raises(ConfigError, match=r"is there already\. Name another folder with --to"):
        published(bundles / "run-1", tmp_path, layout)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["mine"]


def test_a_copy_that_a_killed_command_left_is_pointed_at_by_the_next_one(bundles: Path, tmp_path: Path) -> None:
    """The kill came between the rename of the copy and the move of `NEWEST`, which servers follow."""
    for version in (UPSERTED, "run-1"):
        published(bundles / version, tmp_path, "folder")
    point_at(tmp_path, UPSERTED, NEWEST)
    written = (tmp_path / "run-1" / "MANIFEST.json").stat().st_mtime_ns
    summary = published(bundles / "run-1", tmp_path, "folder")
    assert (tmp_path / NEWEST).read_text() == "run-1"
    assert (tmp_path / "run-1" / "MANIFEST.json").stat().st_mtime_ns == written
    assert 0 < summary["max_logit_difference"] < 1e-5


@pytest.mark.parametrize("layout", ["triton", "mlflow"])
def test_what_a_killed_command_published_is_found_by_the_next_one(bundles: Path, tmp_path: Path, layout: str) -> None:
    """The kill came after the rename, before anyone was told."""
    first = published(bundles / "run-1", tmp_path / "to", layout)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "to").rglob("*")}
    again = published(bundles / "run-1", tmp_path / "to", layout)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "to").rglob("*")} == before
    assert again["published"] == first["published"]
    assert again["max_logit_difference"] == first["max_logit_difference"]
    with pytest.raises(ConfigError, match=r"is there already\. Name another folder with --to"):
        published(bundles / UPSERTED, tmp_path / "to", layout)


@pytest.mark.parametrize(
    ("layout", "table"), [("triton", "shop/1/item_table.bin"), ("mlflow", "bundle/item_table.bin")]
)
def test_what_was_published_and_damaged_since_is_not_taken_for_whole(
    bundles: Path, tmp_path: Path, layout: str, table: str
) -> None:
    published(bundles / "run-1", tmp_path / "to", layout)
    file = tmp_path / "to" / table
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"item_table\.bin: is not what was published"):
        published(bundles / "run-1", tmp_path / "to", layout)


def test_a_copy_that_was_damaged_since_is_not_pointed_at(bundles: Path, tmp_path: Path) -> None:
    for version in ("run-1", UPSERTED):
        published(bundles / version, tmp_path, "folder")
    (tmp_path / "run-1" / "item_table.bin").write_bytes(b"other")
    with pytest.raises(DataError, match=r"item_table\.bin: changed since it was exported"):
        published(bundles / "run-1", tmp_path, "folder")
    assert (tmp_path / NEWEST).read_text() == UPSERTED


def test_another_bundle_of_the_same_name_stays(bundles: Path, tmp_path: Path) -> None:
    """A bundle of another machine may have the name of this one."""
    shutil.copytree(bundles / UPSERTED, tmp_path / "run-1")
    with pytest.raises(ConfigError, match=r"run-1: is there already\. Name another folder with --to"):
        published(bundles / "run-1", tmp_path, "folder")
    assert not (tmp_path / NEWEST).exists()


def test_a_bundle_is_no_copy_of_itself(bundles: Path) -> None:
    before = (bundles / NEWEST).exists()
    with pytest.raises(ConfigError, match=r"run-1: is there already\. Name another folder with --to"):
        published(bundles / "run-1", bundles, "folder")
    assert (bundles / NEWEST).exists() is before


@pytest.mark.parametrize("layout", ["folder", "triton"])
def test_a_bundle_gets_nothing_more(bundles: Path, tmp_path: Path, layout: str) -> None:
    to = shutil.copytree(bundles / "run-1", tmp_path / "taken")
    with pytest.raises(ConfigError, match=r"lies in .*taken, which holds what its MANIFEST\.json names"):
        published(bundles / "run-1", to, layout)
    open_bundle(to)


def test_a_changed_bundle_is_not_published(bundles: Path, tmp_path: Path) -> None:
    changed = shutil.copytree(bundles / "run-1", tmp_path / "changed")
    (changed / "item_table.bin").write_bytes(b"other")
    with pytest.raises(DataError, match=r"item_table\.bin: changed since it was exported"):
        published(changed, tmp_path / "to", "folder")
    assert not (tmp_path / "to").exists()


def test_the_command_follows_a_pointer_and_names_the_layouts(
    bundles: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["publish", "--bundle", str(bundles / "CURRENT"), "--to", str(tmp_path / "models"), "--json", "--layout"]
    with pytest.raises(SystemExit) as ended:
        main([*command, "triton"])
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert not ended.value.code and (summary["layout"], summary["model_version"]) == ("triton", "run-1")
    files = {str(path.relative_to(tmp_path / "models")) for path in (tmp_path / "models").rglob("*") if path.is_file()}
    assert files == {
        "shop/config.pbtxt",
        "shop/MANIFEST.json",
        "shop/1/model.onnx",
        "shop/1/item_table.bin",
    }
    with pytest.raises(SystemExit) as ended:
        main([*command, "tritron"])
    assert ended.value.code == 2
    assert "--layout tritron: choose one of folder, triton, mlflow." in capsys.readouterr().err
