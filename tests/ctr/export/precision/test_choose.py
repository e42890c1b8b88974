"""Variants of a bundle: what is measured of them, which one is chosen, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from ctr.config import ModelConfig
from ctr.data.columns import row_weights
from ctr.evaluation.metrics import auc
from ctr.export.export_bundle import ExportResult, Extras, export_bundle
from ctr.export.model_card import model_card
from ctr.export.precision import choose
from ctr.export.precision.choose import Trial, fastest
from ctr.export.precision.products import large_products, quantize_products
from ctr.export.precision.put import VariantChoice, put_variant
from ctr.export.ranker_as_of import ranker_as_of
from ctr.export.serving_graph import RequestGraph
from ctr.model.click_model import ClickModel
from ctr.serving.agreement import TOLERANCE
from ctr.serving.bundle import ITEM_TABLE, MODEL_CARD, RANKER, BundleMetadata, open_bundle, seal
from ctr.serving.items.new_items import items_of_json
from ctr.serving.items.upsert import upsert_items
from ctr.serving.ranker import Ranker, open_session
from features.errors import DataError, NumericalError
from features.store.feature_set import FeatureSet
from tests.trained import built_feature_set, random_model

INT8 = onnx.TensorProto.INT8


@pytest.fixture(scope="module")
def feature_set(tmp_path_factory: pytest.TempPathFactory) -> FeatureSet:
    return built_feature_set(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="module")
def model(feature_set: FeatureSet) -> ClickModel:
    parts = {"match_features": True, "tasks": ("like",), "cross_cells": 40}
    return random_model(feature_set, ModelConfig(embedding_dim=16, attention_dim=16, layers=1, **parts), seed=5)


def exported(model: ClickModel, feature_set: FeatureSet, out: Path, *choice: Any) -> ExportResult:
    return export_bundle(
        model,
        feature_set,
        out,
        model_version="run-1",
        architecture="qin",
        metrics={},
        controls={},
        git_revision="0123abcd",
        extras=Extras(variant=VariantChoice(*choice)),
    )


def put(plain: ExportResult, model: ClickModel, feature_set: FeatureSet, out: Path, *choice: Any) -> BundleMetadata:
    """A variant put into a copy of a bundle in single precision, without exporting it again."""
    bundle = open_bundle(shutil.copytree(plain.path, out))
    blocks = RequestGraph(model).table_blocks
    metadata = put_variant(out, bundle.manifest, blocks, feature_set, VariantChoice(*choice))
    seal(out, metadata)
    return metadata


@pytest.fixture(scope="module")
def tried(model: ClickModel, feature_set: FeatureSet, tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    """All variants, whatever they lose."""
    return exported(model, feature_set, tmp_path_factory.mktemp("bundles") / "auto", "auto", 1.0)


@pytest.fixture(scope="module")
def plain(model: ClickModel, feature_set: FeatureSet, tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    return exported(model, feature_set, tmp_path_factory.mktemp("bundles") / "plain")


def trial(milliseconds: float, mib: float = 1.0, loss: float = 0.0) -> Trial:
    return Trial(0.7, loss, 0.0, milliseconds, mib, 100)


def logits(scores: np.ndarray) -> np.ndarray:
    return np.log(scores) - np.log1p(-scores)


def valid_scores(path: Path, feature_set: FeatureSet) -> np.ndarray:
    """Click probabilities of all validation rows, in the order of the feature set."""
    with ranker_as_of(Ranker.load(path), feature_set) as then:
        return np.array(
            [
                scores[0]
                for part, rows in enumerate(feature_set.rows("valid"))
                for scores in then.row_scores(feature_set, "valid", part, range(len(rows["item"])))
            ]
        )


@pytest.mark.parametrize(
    ("trials", "bound", "wanted"),
    [
        ({"fp32": trial(2.0), "int8_products": trial(1.0, loss=0.0006)}, 0.0005, "fp32"),
        ({"fp32": trial(2.0), "int8_products": trial(1.0, loss=0.0005)}, 0.0005, "int8_products"),
        ({"fp32": trial(2.0, 4), "fp16_table": trial(2.05, 2), "int8_table": trial(2.1, 1)}, 1, "fp16_table"),
        ({"fp32": trial(2.0, 1), "fp16_table": trial(2.0, 1, -0.01)}, 0, "fp32"),
        ({"fp32": trial(2.0), "int8_table": trial(1.0, loss=float("nan"))}, 1, "fp32"),
    ],
)
def test_the_fastest_that_holds_the_bound_is_chosen_and_the_smaller_of_two_alike(trials, bound, wanted):
    assert fastest(trials, bound) == wanted


def test_every_variant_is_scored_on_the_same_rows(tried: ExportResult, plain: ExportResult, feature_set: FeatureSet):
    assert list(tried.variants) == ["fp32", "fp16_table", "int8_table", "int8_products"]
    labels = np.concatenate([rows["label"] for rows in feature_set.rows("valid")])
    weights = row_weights(feature_set, "valid")
    of_plain = valid_scores(plain.path, feature_set)
    assert tried.variants["fp32"]["auc"] == pytest.approx(auc(labels, of_plain, weights))
    chosen = tried.variants[tried.variant]
    of_chosen = valid_scores(tried.path, feature_set)
    assert chosen["auc"] == pytest.approx(auc(labels, of_chosen, weights))
    for name, found in tried.variants.items():
        assert found["rows"] == len(labels) and found["milliseconds"] > 0
        assert found["auc_loss"] == pytest.approx(tried.variants["fp32"]["auc"] - found["auc"], abs=1e-12)
        assert (found["logit_difference"] == 0) == (name == "fp32")


def test_the_card_names_the_variant_and_nothing_of_what_was_tried_stays(tried: ExportResult, plain: ExportResult):
    assert f"**{tried.variant}**" in (tried.path / MODEL_CARD).read_text()
    assert "## Variant" not in (plain.path / MODEL_CARD).read_text()

    def names(folder: Path) -> set[str]:
        return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}

    assert names(tried.path) == names(plain.path)


def test_the_card_of_a_variant_promises_no_score_to_the_fifth_digit(plain, model, feature_set, tmp_path: Path):
    """Its example has the scores of the trained model, and rounding may fall on either side on another processor."""
    contract, schema = feature_set.contract, feature_set.schema
    example = open_bundle(plain.path).golden().cases[0]
    metadata = put(plain, model, feature_set, tmp_path / "bundle", "fp16_table", 1.0)
    card = model_card(metadata, contract, schema, example)
    assert "answers, but for the rounding of `fp16_table`\n" in card
    assert "- Scores are those of the trained model but for the rounding of `fp16_table`: those of" in card
    assert "1e-5" not in card
    of_plain = (plain.path / MODEL_CARD).read_text()
    assert "answers\n" in of_plain
    assert "- Scores repeat within 1e-5, not to the last bit.\n" in of_plain


@pytest.mark.parametrize("name", ["fp16_table", "int8_table", "int8_products"])
def test_a_named_variant_is_put_and_recorded(model, feature_set, plain, tmp_path: Path, name: str):
    out = tmp_path / "bundle"
    metadata = put(plain, model, feature_set, out, name, 1.0)
    assert metadata.variant == name and list(metadata.variants) == ["fp32", name]
    # Other scores are another version: in answers, in the log, and for the registry.
    assert Ranker.load(out).model_version == metadata.model_version == f"run-1+{name}"
    single = logits(valid_scores(plain.path, feature_set))
    difference = np.abs(logits(valid_scores(out, feature_set)) - single) / np.maximum(1, np.abs(single))
    assert 0 < difference.max() < 0.3
    assert difference.max() == pytest.approx(metadata.variants[name]["logit_difference"], rel=0.5)
    # The scores of the trained model stay, and the tolerance says how far this graph is from them.
    golden, before = (json.loads((path / "golden.json").read_text()) for path in (out, plain.path))
    assert golden["cases"] == before["cases"] and TOLERANCE < golden["tolerance"] < 0.5
    assert Ranker.load(out).replay() == pytest.approx(golden["tolerance"] / 2, rel=0.2)
    graph = onnx.load(out / RANKER, load_external_data=False).graph
    kinds = {one.name: one.data_type for one in graph.initializer}
    if name == "int8_products":
        weights = {node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"} & set(kinds)
        found = {one.name: numpy_helper.to_array(one) for one in graph.initializer if kinds[one.name] == INT8}
        whole = {weight: values for weight, values in found.items() if values.ndim == 2}  # the others are zero points
        scales = {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
        lengths = {one.name: list(one.dims) for one in graph.initializer}
        assert whole and weights >= set(whole)
        products = [node for node in graph.node if node.op_type in ("MatMul", "Gemm") and node.input[1] in scales]
        for product in products:
            made = scales[product.input[1]]
            if made.input[0] not in whole:
                continue
            values = whole.pop(made.input[0])
            # 7 bits, so that a processor without such products does not overflow; a scale for each output.
            assert np.abs(values.astype(int)).max() <= 64
            turned = any(one.name == "transB" and one.i for one in product.attribute)
            assert lengths[made.input[1]] == [values.shape[0 if turned else 1]]
        assert not whole
        (table,) = (one for one in graph.initializer if one.name == "item_table")
        assert table.external_data and (out / ITEM_TABLE).stat().st_size == 4 * table.dims[0] * table.dims[1]
        return
    small = INT8 if name == "int8_table" else onnx.TensorProto.FLOAT16
    # x, then a space of unit vectors for each set, then crossed columns, which are indices.
    blocks = [kinds[f"item_table_{number}"] for number in range(len(RequestGraph(model).table_blocks))]
    assert blocks[0] == blocks[1] == small and blocks[-1] == onnx.TensorProto.FLOAT


def test_a_variant_that_loses_too_much_is_refused(model, feature_set, plain, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(choose, "auc", lambda labels, scores, weights: float(scores[0]))
    with pytest.raises(NumericalError, match=r"loses .* AUC on .* validation rows, and --max-auc-loss allows -1"):
        put(plain, model, feature_set, tmp_path / "bundle", "int8_table", -1)


def test_drawn_rows_of_one_label_are_refused_before_a_variant_is_written(model, feature_set, plain, tmp_path: Path):
    """As where clicks are rarer than one in the 20,000 rows that are drawn."""
    wanted = (
        r"measured on 1 of the 60 validation rows, .* but [01] of these rows are positive\. Export without --variant"
    )
    with pytest.raises(DataError, match=wanted):
        put(plain, model, feature_set, tmp_path / "bundle", "int8_table", 1.0, 1)
    assert not [path for path in (tmp_path / "bundle").iterdir() if path.name.startswith(".")]


def test_a_weight_of_a_product_is_a_tensor_of_its_own(plain: ExportResult):
    """What a node cuts out of a weight is found by nobody who converts weights, and is packed at no start."""
    graph = onnx.load(plain.path / RANKER, load_external_data=False).graph
    constants = {one.name for one in graph.initializer}
    made = {name for node in graph.node if set(filter(None, node.input)) <= constants for name in node.output}
    products = [node for node in graph.node if node.op_type in ("MatMul", "Gemm")]
    assert not {node.input[1] for node in products} & made
    # On the right, where it is looked for.
    assert not {node.input[0] for node in products} & constants


def test_products_alone_are_in_whole_numbers(feature_set, plain, model, tmp_path: Path):
    """What else reads an input of a product, and what reads its output, has it in single precision."""
    put(plain, model, feature_set, tmp_path / "bundle", "int8_products", 1.0)
    graph = onnx.load(tmp_path / "bundle" / RANKER, load_external_data=False).graph
    constants = {one.name for one in graph.initializer}
    products = [node for node in graph.node if node.op_type in ("MatMul", "Gemm")]
    back = [node for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] not in constants]
    converted = {name for node in graph.node if node.op_type == "QuantizeLinear" for name in node.input[:1]}
    readers = [node for node in graph.node if set(node.input) & {one.output[0] for one in back}]
    assert {node.op_type for node in readers} == {"Gemm", "MatMul"}
    assert not converted & {product.output[0] for product in products}


def test_a_graph_without_large_products_stays_as_it_is(plain: ExportResult, tmp_path: Path, monkeypatch):
    found = large_products(plain.path / RANKER)
    weights = {one.name: int(np.prod(one.dims)) for one in onnx.load(plain.path / RANKER).graph.initializer}
    monkeypatch.setattr("ctr.export.precision.products.FEWEST_WEIGHTS", min(weights[one.input[1]] for one in found))
    assert large_products(plain.path / RANKER) == found
    monkeypatch.setattr("ctr.export.precision.products.FEWEST_WEIGHTS", 10**9)
    assert quantize_products(plain.path / RANKER, tmp_path / "graph.onnx", iter(())) == 0
    assert (tmp_path / "graph.onnx").read_bytes() == (plain.path / RANKER).read_bytes()


def test_numbers_that_no_calibration_row_has_do_not_stop_the_conversion(feature_set, plain, tmp_path: Path):
    """A column that is mostly missing may be missing in all of the few rows that set the scales."""
    inputs = {node.name for node in open_session(plain.path / RANKER).get_inputs()}
    feeds = [
        {
            name: np.full_like(values, np.nan) if values.dtype == np.float32 else values
            for name, values in feed.items()
            if name in inputs
        }
        for feed in choose._feeds(feature_set, np.arange(20), 5)
    ]
    assert any(np.isnan(values).all() for values in feeds[0].values() if values.dtype == np.float32)
    for name in (RANKER, ITEM_TABLE):
        shutil.copyfile(plain.path / name, tmp_path / name)
    assert quantize_products(tmp_path / RANKER, tmp_path / "graph.onnx", iter(feeds)) > 0
    whole, exact = (open_session(tmp_path / name) for name in ("graph.onnx", RANKER))
    for feed in feeds[:3]:
        np.testing.assert_allclose(whole.run(None, feed)[0], exact.run(None, feed)[0], rtol=0, atol=0.05)


def test_new_items_are_read_by_a_variant(tried: ExportResult, tmp_path: Path):
    """An upsert rewrites no graph, and its rows stay in single precision."""
    entry = {"item": 4711, "columns": {"genre": "crime"}}
    made = upsert_items(tried.path, lambda encoder: items_of_json(encoder, {"items": [entry]}, 10), tmp_path / "new")
    request = json.loads((tried.path / "request.json").read_text()) | {"candidates": [4711]}
    assert Ranker.load(made.path).rank(request).unknown_candidates == ()
    assert Ranker.load(tried.path).rank(request).unknown_candidates == (4711,)
    assert open_bundle(made.path).manifest.variant == tried.variant
