"""Products are read from a graph and counted once each, whatever way the graph writes them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.harness import graph_products
from benchmarks.harness.graph_products import GraphProduct, least_milliseconds, products_of
from ctr.serving.ranker import open_session


def graph_of(folder: Path, nodes: list[onnx.NodeProto], weights: dict[str, tuple[int, ...]]) -> Path:
    """A graph of inputs `x` [rows, 3] and `y` [rows, 3]."""
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 3]) for name in ("x", "y")]
    tensors = [numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in weights.items()]
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "graph", inputs, [out], tensors)
    path = folder / "graph.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def test_products_have_the_sizes_of_the_request(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["a"]),  # [7, 3] x [3, 5]
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Gemm", ["b", "V", "c"], ["d"], transB=1),  # [7, 5] x [5, 2]
        helper.make_node("Gemm", ["x", "T"], ["e"], transA=1),  # [3, 7] x [7, 2]
        helper.make_node("Transpose", ["y"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "t"], ["out"]),  # [7, 3] x [3, 7], no weight
    ]
    path = graph_of(tmp_path, nodes, {"W": (3, 5), "V": (2, 5), "c": (2,), "T": (7, 2)})
    assert products_of(path, {"rows": 7}) == Counter(
        [
            GraphProduct(7, 3, 5, True),
            GraphProduct(7, 5, 2, True),
            GraphProduct(3, 7, 2, True),
            GraphProduct(7, 3, 7, False),
        ]
    )


def test_a_product_of_whole_numbers_is_told_apart_and_timed_as_such(tmp_path, monkeypatch):
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "step", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "step", "zero"], ["r"]),
        helper.make_node("DequantizeLinear", ["w", "scale"], ["weight"], axis=1),
        helper.make_node("MatMul", ["r", "weight"], ["a"]),  # [7, 3] x [3, 5] of 8 bits
        helper.make_node("MatMul", ["a", "V"], ["out"]),  # [7, 5] x [5, 2]
    ]
    path = graph_of(tmp_path, nodes, {"V": (5, 2), "scale": (5,)})
    model = onnx.load(path)
    for name, values in (("step", np.float32(0.1)), ("zero", np.uint8(128)), ("w", np.ones((3, 5), np.int8))):
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
    onnx.save(model, path)
    found = products_of(path, {"rows": 7})
    assert found == Counter([GraphProduct(7, 3, 5, True, True), GraphProduct(7, 5, 2, True)])
    timed = []
    monkeypatch.setattr(
        graph_products, "open_session", lambda graph, threads: timed.append(graph) or open_session(graph, threads)
    )
    assert least_milliseconds(found, 1) > 0
    kinds = [{node.op_type for node in onnx.load_from_string(graph).graph.node} for graph in timed]
    assert sorted(map(sorted, kinds)) == [["DequantizeLinear", "MatMul", "QuantizeLinear"], ["MatMul"]]


def test_a_vector_is_a_matrix_of_one_column_and_a_stack_is_many_products(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "v"], ["a"]),  # [7, 3] x [3]
        helper.make_node("Unsqueeze", ["y", "front"], ["z"]),  # [1, 7, 3]
        helper.make_node("MatMul", ["z", "S"], ["out"]),  # [1, 7, 3] x [4, 3, 2]
    ]
    path = graph_of(tmp_path, nodes, {"v": (3,), "S": (4, 3, 2)})
    model = onnx.load(path)
    model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "front"))
    onnx.save(model, path)
    wanted = {GraphProduct(7, 3, 1, True): 1, GraphProduct(7, 3, 2, True): 4}
    assert products_of(path, {"rows": 7}) == Counter(wanted)


def of_places(*nodes: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Nodes behind `f`, the places of all that is not zero in x, [2, any number]."""
    places = helper.make_node("NonZero", ["x"], ["n"])
    return [places, helper.make_node("Cast", ["n"], ["f"], to=TensorProto.FLOAT), *nodes]


def test_a_product_of_a_size_that_cannot_be_told_is_an_error(tmp_path):
    nodes = of_places(
        helper.make_node("Transpose", ["f"], ["t"], perm=[1, 0]), helper.make_node("MatMul", ["t", "w"], ["out"])
    )
    with pytest.raises(ValueError, match="MatMul out: shapes"):
        products_of(graph_of(tmp_path, nodes, {"w": (2, 5)}), {"rows": 3})


def test_a_size_that_both_sides_share_is_told_by_either(tmp_path):
    nodes = of_places(helper.make_node("MatMul", ["f", "w"], ["out"]))
    found = products_of(graph_of(tmp_path, nodes, {"w": (9, 5)}), {"rows": 3})
    assert found == Counter({GraphProduct(2, 9, 5, True): 1})


def test_every_product_counts_as_often_as_it_occurs(monkeypatch):
    monkeypatch.setattr(graph_products, "_milliseconds", lambda product, threads: product.m * threads)
    products = Counter({GraphProduct(3, 1, 1, True): 2, GraphProduct(5, 1, 1, False): 1})
    assert least_milliseconds(products, 2) == 2 * (2 * 3 + 5)


@pytest.mark.parametrize("constant", [True, False])
def test_a_product_is_timed_with_a_weight_and_without(constant):
    small, large = GraphProduct(8, 8, 8, constant), GraphProduct(1_024, 512, 512, constant)
    assert 0 < least_milliseconds(Counter([small]), 1) < least_milliseconds(Counter([large]), 1)
