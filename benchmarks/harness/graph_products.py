"""The matrix products of an ONNX graph, and the least time that this machine needs for them in ONNX Runtime."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, shape_inference

from ctr.serving.ranker import open_session

CALLS, WARM_UP = 15, 3


class GraphProduct(NamedTuple):
    """`[m, k] x [k, n]`; `constant` where the right side is a weight, which ONNX Runtime packs once.

    `whole` where weight and activation are whole numbers of 8 bits.
    """

    m: int
    k: int
    n: int
    constant: bool
    whole: bool = False


def products_of(path: Path, axes: Mapping[str, int]) -> Counter[GraphProduct]:
    """How often each product occurs in a graph, once its named axes have these sizes.

    Args:
        path: of the graph.
        axes: size by name, e.g. `{"candidates": 500, "history": 64}`; other axes have size 1.

    Raises:
        ValueError: the shape of a product cannot be told from the graph.
    """
    model = onnx.load(path, load_external_data=False)
    for value in model.graph.input:
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param:
                axis.dim_value = axes.get(axis.dim_param, 1)
    inferred = shape_inference.infer_shapes(model, data_prop=True).graph
    constants = {tensor.name for tensor in inferred.initializer}
    shapes = {tensor.name: list(tensor.dims) for tensor in inferred.initializer}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        shapes[value.name] = [axis.dim_value for axis in value.type.tensor_type.shape.dim]
    # A weight of 8 bits reaches its product by way of a node that names its scale.
    whole = {
        node.output[0] for node in inferred.node if node.op_type == "DequantizeLinear" and node.input[0] in constants
    }
    found: Counter[GraphProduct] = Counter()
    for node in inferred.node:
        if node.op_type not in ("MatMul", "Gemm"):
            continue
        left, right, (out, *_) = list(shapes.get(node.input[0], [])), list(shapes.get(node.input[1], [])), node.output
        flags = {attribute.name: attribute.i for attribute in node.attribute}
        if node.op_type == "MatMul" and len(left) > 1 and len(right) > 1:
            # A size that a reshape leaves open is that of the other side.
            left[-1], right[-2] = left[-1] or right[-2], right[-2] or left[-1]
        if not (left and right and all(left) and all(right)):
            raise ValueError(f"{path}: {node.op_type} {out}: shapes {left} x {right}")
        left = [1, *left] if len(left) == 1 else left
        right = [*right, 1] if len(right) == 1 else right
        *rows, k = reversed(left) if flags.get("transA") else left
        n = right[-2] if flags.get("transB") else right[-1]
        # Of a stack of right sides, each has its own rows.
        times = int(np.prod(right[:-2]))
        m = rows[-1] if right[:-2] else int(np.prod(rows))
        weight = node.input[1]
        found[GraphProduct(m, k, n, weight in constants or weight in whole, weight in whole)] += times
    return found


def least_milliseconds(products: Counter[GraphProduct], threads: int) -> float:
    """Milliseconds of all products alone, each the median of some calls of a graph that holds nothing else."""
    return sum(times * _milliseconds(product, threads) for product, times in products.items())


def _milliseconds(product: GraphProduct, threads: int) -> float:
    generator = np.random.default_rng(0)
    left_MK = generator.standard_normal((product.m, product.k), np.float32)
    right_KN = generator.standard_normal((product.k, product.n), np.float32)
    inputs = [helper.make_tensor_value_info("left", TensorProto.FLOAT, left_MK.shape)]
    feed, weights = {"left": left_MK}, []
    if product.constant:
        weights = [numpy_helper.from_array(right_KN, "right")]
    else:
        inputs.append(helper.make_tensor_value_info("right", TensorProto.FLOAT, right_KN.shape))
        feed["right"] = right_KN
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, (product.m, product.n))
    nodes = [helper.make_node("MatMul", ["left", "right"], ["out"])]
    if product.whole:
        nodes, weights = _in_whole_numbers(right_KN)
    graph = helper.make_graph(nodes, "product", inputs, [out], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    session = open_session(model.SerializeToString(), threads)
    times = []
    for _ in range(WARM_UP + CALLS):
        started = time.perf_counter()
        session.run(None, feed)
        times.append(time.perf_counter() - started)
    return median(times[WARM_UP:]) * 1e3


def _in_whole_numbers(right_KN: np.ndarray) -> tuple[list[onnx.NodeProto], list[TensorProto]]:
    """Nodes and weights of the product as a graph of 8 bits has it: a scale for each column of the weight."""
    scale_N = (np.abs(right_KN).max(axis=0) / 63).astype(np.float32)
    weights = {
        "step": np.float32(8 / 255),
        "zero": np.uint8(128),
        "weight": np.rint(right_KN / scale_N).astype(np.int8),
        "scale": scale_N,
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["left", "step", "zero"], ["left_whole"]),
        helper.make_node("DequantizeLinear", ["left_whole", "step", "zero"], ["left_back"]),
        helper.make_node("DequantizeLinear", ["weight", "scale"], ["right"], axis=1),
        helper.make_node("MatMul", ["left_back", "right"], ["out"]),
    ]
    return nodes, [numpy_helper.from_array(np.asarray(values), name) for name, values in weights.items()]
