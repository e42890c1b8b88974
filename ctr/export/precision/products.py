"""The large products of a graph in whole numbers of 8 bits: static, a scale for each output of a weight."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx.external_data_helper import ExternalDataInfo
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

FEWEST_WEIGHTS = 4_096  # of a product that is worth two conversions
PRODUCTS = ["MatMul", "Gemm"]
OUTPUTS_STAY = {"OpTypesToExcludeOutputQuantization": PRODUCTS}  # in single precision
WARNINGS, ERRORS = 2, 3  # what ONNX Runtime logs: from warnings on, as it begins, or errors alone

Feed = dict[str, np.ndarray]


class _Feeds(CalibrationDataReader):
    def __init__(self, feeds: Iterable[Feed]) -> None:
        self._feeds = iter(feeds)

    def get_next(self) -> Feed | None:
        return next(self._feeds, None)


def quantize_products(source: Path, target: Path, feeds: Iterable[Feed]) -> int:
    """Write a copy of a ranker graph whose products with constant weights are of whole numbers of 8 bits.

    Weights have 7 bits and activations 8, so that processors without instructions for such products do not overflow.

    Args:
        source: a graph in single precision, its table beside it.
        target: file of the new graph, in the same folder: both read the one table.
        feeds: inputs of the graph whose largest and smallest activations set the scales.

    Returns:
        How many products were converted; with none, the graph is the one that was.
    """
    nodes = [node.name for node in large_products(source)]
    if not nodes:
        shutil.copyfile(source, target)
        return 0
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch, _quiet():
        given, made = Path(scratch) / "given.onnx", Path(scratch) / target.name
        # The table is given to the graph like a request, mapped: the tools would load it, and write no 2 GB.
        tables = _with_tables_given(source, given)
        quantize_static(
            given,
            made,
            _Feeds({**feed, **tables} for feed in feeds),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=nodes,
            # Else all numbers of the graph are measured, and one that is missing in every feed has no range.
            op_types_to_quantize=PRODUCTS,
            extra_options=OUTPUTS_STAY,
        )
        model = onnx.load(made)
    _keep_other_readers(model.graph, set(nodes))
    _refer_to_tables(model, source)
    onnx.save(model, target)
    onnx.checker.check_model(target, full_check=True)
    return len(nodes)


def large_products(path: Path) -> list[onnx.NodeProto]:
    """Products of a graph whose right side is a matrix of at least 4,096 weights."""
    graph = onnx.load(path, load_external_data=False).graph
    weights = {tensor.name: int(np.prod(tensor.dims)) for tensor in graph.initializer if len(tensor.dims) == 2}
    return [node for node in graph.node if node.op_type in PRODUCTS and weights.get(node.input[1], 0) >= FEWEST_WEIGHTS]


def _keep_other_readers(graph: onnx.GraphProto, products: set[str]) -> None:
    """Let what is no product read the inputs of products as they were, not converted and back: faster, and exact."""
    before = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "QuantizeLinear"}
    back = {
        node.output[0]: before[node.input[0]]
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in before
    }
    for node in graph.node:
        if node.name not in products:
            node.input[:] = [back.get(name, name) for name in node.input]


def _tables(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    """What the graph reads from files beside it."""
    return [tensor for tensor in graph.initializer if tensor.external_data]


def _with_tables_given(source: Path, target: Path) -> Feed:
    """Write a copy of a graph that takes its tables as inputs, and return them."""
    model = onnx.load(source, load_external_data=False)
    found: Feed = {}
    for tensor in _tables(model.graph):
        place = ExternalDataInfo(tensor)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        found[tensor.name] = np.memmap(
            source.with_name(place.location), dtype, mode="r", offset=place.offset or 0, shape=tuple(tensor.dims)
        )
        model.graph.initializer.remove(tensor)
        model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    onnx.save(model, target)
    return found


def _refer_to_tables(model: onnx.ModelProto, source: Path) -> None:
    """Let the graph read its tables from the files again, as the original does."""
    tables = _tables(onnx.load(source, load_external_data=False).graph)
    inputs = [value for value in model.graph.input if value.name not in {tensor.name for tensor in tables}]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    model.graph.initializer.extend(tables)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the advice to prepare the graph, and without warnings of inputs that have a default, as the delta has."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    ort.set_default_logger_severity(ERRORS)
    try:
        yield
    finally:
        logging.disable(before)
        ort.set_default_logger_severity(WARNINGS)
