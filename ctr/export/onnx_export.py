"""The modules of a bundle's graphs to ONNX files, their axes named and checked.

Shapes: H history items of one request, N candidates, D item width.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnxscript import ir
from torch import Tensor, nn
from torch.export import Dim

from ctr.export.folding.trees import tree_translation
from ctr.export.scoring.scoring_graph import ScoringGraph
from ctr.export.serving_graph import ItemGraph, RequestGraph
from ctr.serving.bundle import (
    ITEM_DELTA,
    ITEM_TABLE,
)
from features.errors import NumericalError
from features.store.schema import Field, Schema

OPSET = 20
HISTORY = "history"
CANDIDATES = "candidates"
ITEMS_AXIS = "items"
DELTA_AXIS = "later_items"
REQUESTS = "requests"
VALUES_PER_CHUNK = 1 << 24

Shape = list[int | str]


def export_request_graph(graph: RequestGraph, schema: Schema, path: Path) -> dict[str, Shape]:
    """Write a `RequestGraph` to `path`, its item table as `item_table.bin` beside it.

    User and context inputs have no candidate axis: they are read once a request, not once a candidate.

    Args:
        graph: `forward(*inputs)` in the order of `graph.input_names`, returning probabilities [N];
            its item table is the buffer `item_table` [items, D]; more than one output in the order of
            `graph.output_names`.

    Returns:
        Shape of every input by name, named axes as text.

    Raises:
        NumericalError: a weight is not finite, or the exporter froze an axis or made a loop.
    """
    examples = example_inputs(schema, graph.input_names)
    shapes = {name: _expected_shape(name, tensor) for name, tensor in examples.items()}
    model = _trace(graph, examples, shapes, graph.output_names)
    _move_table_out(model, "item_table", path.with_name(ITEM_TABLE))
    width = _open(model, ITEM_DELTA, DELTA_AXIS)
    _save(model, path)
    check_shapes(path, shapes | {ITEM_DELTA: [DELTA_AXIS, width]} | {name: [CANDIDATES] for name in graph.output_names})
    return shapes


def export_scoring_graph(graph: ScoringGraph, schema: Schema, path: Path) -> None:
    """Write a `ScoringGraph` to `path`, which reads the `item_table.bin` that the request graph has written beside it.

    Raises:
        NumericalError: as `export_request_graph`.
    """
    one = example_inputs(schema, graph.input_names)
    many = {name for name in one if name.startswith(("history_", "candidate_"))}
    # 3 requests: neither H nor N, and not 1, which would be taken for an axis to broadcast.
    examples = {name: (torch.stack if name in many else torch.cat)([tensor] * 3) for name, tensor in one.items()}
    shapes: dict[str, Shape] = {
        name: [REQUESTS, *_expected_shape(name, tensor)[name not in many :]] for name, tensor in one.items()
    }
    model = _trace(graph, examples, shapes, graph.output_names)
    _move_table_out(model, "item_table", path.with_name(ITEM_TABLE), write=False)
    width = _open(model, ITEM_DELTA, DELTA_AXIS)
    _save(model, path)
    scores: dict[str, Shape] = {name: [REQUESTS, CANDIDATES] for name in graph.output_names}
    check_shapes(path, shapes | {ITEM_DELTA: [DELTA_AXIS, width]} | scores)


def export_item_graph(graph: ItemGraph, schema: Schema, path: Path) -> dict[str, Shape]:
    """Write an `ItemGraph` to `path`: encoded columns and vectors of M new items -> rows of the item table.

    Returns:
        Shape of every input by name; M is the axis `items`.

    Raises:
        NumericalError: as `export_request_graph`.
    """
    examples = example_items(schema, graph.input_names)
    shapes: dict[str, Shape] = {name: [ITEMS_AXIS, *tensor.shape[1:]] for name, tensor in examples.items()}
    model = _trace(graph, examples, shapes, graph.output_names)
    _save(model, path)
    with torch.inference_mode():
        width = graph(*examples.values()).shape[1]
    check_shapes(path, shapes | {"row": [ITEMS_AXIS, width]})
    return shapes


def check_shapes(path: Path, shapes: Mapping[str, Shape]) -> None:
    """Check that a saved graph has exactly these inputs and outputs, each axis named or fixed as given.

    An axis that was forgotten at export is frozen to the example's length without a warning, and the
    graph then fails, or scores wrongly, for every other length.

    Raises:
        NumericalError: an axis differs, or the graph holds a loop.
    """
    graph = onnx.load(path, load_external_data=False).graph
    found = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    if set(found) != set(shapes):
        raise NumericalError(f"{path}: inputs and outputs are {sorted(found)}, expected {sorted(shapes)}.")
    for name, shape in shapes.items():
        if found[name] != list(shape):
            raise NumericalError(
                f"{path}: {name} has shape {found[name]}, expected {list(shape)}: the exporter froze or freed an axis."
            )
    # A loop takes one step a candidate, some hundred times slower: nn.EmbeddingBag becomes one.
    loops = sorted({node.op_type for node in graph.node} & {"Loop", "Scan"})
    if loops:
        raise NumericalError(f"{path}: the graph holds a {loops[0]}; write that layer without one.")


def example_inputs(schema: Schema, names: Sequence[str]) -> dict[str, Tensor]:
    """Inputs of the graph's types and ranks, for tracing: H is 5, N is 7."""
    history, candidates = 5, 7
    fields = {f"user_{f.name}": f for f in schema.user} | {f"context_{f.name}": f for f in schema.context}
    lengths = {f"history_{f.name}": history for f in schema.event}
    lengths |= {f"candidate_{f.name}": candidates for f in schema.candidate}
    fields |= {f"history_{f.name}": f for f in schema.event} | {f"candidate_{f.name}": f for f in schema.candidate}
    examples = {"history_item": torch.ones(history, dtype=torch.int64)}
    examples["candidate_item"] = torch.ones(candidates, dtype=torch.int64)
    examples |= {
        name: _example(one).expand(lengths.get(name, 1), *_example(one).shape[1:]) for name, one in fields.items()
    }
    return {name: examples[name].clone() for name in names}


def example_items(schema: Schema, names: Sequence[str]) -> dict[str, Tensor]:
    """Inputs of the item graph, for 5 items."""
    items = 5
    examples = {
        **{f"item_{f.name}": _example(f).expand(items, *_example(f).shape[1:]).clone() for f in schema.item},
        **{f"vector_{v.name}": torch.zeros(items, v.width) for v in schema.vectors},
        **{f"present_{v.name}": torch.ones(items, dtype=torch.bool) for v in schema.vectors},
    }
    return {name: examples[name] for name in names}


def _trace(
    graph: nn.Module, examples: Mapping[str, Tensor], shapes: Mapping[str, Shape], outputs: Sequence[str]
) -> Any:
    """Trace a module to ONNX's intermediate representation, without the exporter's references to source lines."""
    _refuse_non_finite(graph)
    dims = {text: Dim(text) for shape in shapes.values() for text in shape if isinstance(text, str)}
    axes = [{i: dims[d] for i, d in enumerate(shapes[name]) if isinstance(d, str)} for name in examples]
    with quiet_exporter():
        # Exported here, not inside torch.onnx.export: that retries a failure in ways that freeze named axes.
        exported = torch.export.export(
            graph.eval(),
            tuple(examples.values()),
            # `*inputs` is one argument to torch.export, a tuple.
            dynamic_shapes=(tuple(axes),),
        )
        program = torch.onnx.export(
            exported,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(examples),
            output_names=list(outputs),
            dynamic_shapes=(tuple(axes),),
            custom_translation_table=tree_translation(graph),
            verbose=False,
        )
    assert program is not None
    program.model.graph.metadata_props.clear()
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()
    return program.model


def _example(field: Field) -> Tensor:
    if field.kind == "numeric":
        return torch.zeros(1)
    return torch.ones((1, field.max_len) if field.kind == "tags" else 1, dtype=torch.int64)


def _expected_shape(name: str, example: Tensor) -> Shape:
    if name.startswith("candidate_"):
        return [CANDIDATES]
    if name.startswith("history_"):
        return [HISTORY]
    return list(example.shape)


def _refuse_non_finite(graph: nn.Module) -> None:
    for name, values in (*graph.named_parameters(), *graph.named_buffers()):
        # In chunks: asked of a whole item table, it takes more memory than the table.
        wrong = sum(int((~torch.isfinite(chunk)).sum()) for chunk in values.flatten().split(VALUES_PER_CHUNK))
        if wrong:
            raise NumericalError(
                f"export: {wrong} of {values.numel()} values of {name} are not finite. Train again with "
                "a lower `train.learning_rate` or `train.clip_norm`; nothing was published."
            )


def _move_table_out(model: Any, buffer: str, path: Path, write: bool = True) -> None:
    """Write one initializer as raw bytes to `path` and refer to it; the rest of the graph stays one file."""
    value = _initializer(model, buffer)
    table_ID: np.ndarray = value.const_value.numpy()
    if write:
        table_ID.tofile(path)
    value.name = buffer
    value.const_value = ir.ExternalTensor(
        path.name, 0, table_ID.nbytes, value.dtype, shape=value.shape, name=buffer, base_dir=path.parent
    )


def _open(model: Any, buffer: str, axis: str) -> int:
    """Let whoever runs the graph give another value for one initializer, of any length; returns its width."""
    value = _initializer(model, buffer)
    value.name = buffer
    value.shape = ir.Shape([axis, value.shape[1]])
    model.graph.inputs.append(value)
    return int(value.shape[1])


def _initializer(model: Any, buffer: str) -> Any:
    matching = [value for name, value in model.graph.initializers.items() if name.split(".")[-1] == buffer]
    if len(matching) != 1:
        # Indexing (`table[rows]`) instead of F.embedding makes the exporter fold one copy for each use.
        known = ", ".join(model.graph.initializers)
        raise NumericalError(f"export: expected one initializer {buffer!r} in the graph, found these: {known}.")
    return matching[0]


def _save(model: Any, path: Path) -> None:
    ir.save(model, path)
    onnx.checker.check_model(path, full_check=True)


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Silence the exporter's warnings about packages that are not used here and about names."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
