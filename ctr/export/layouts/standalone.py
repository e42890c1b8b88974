"""The ranker graph of a bundle for programs that give encoded inputs alone: upserted items are part of it.

Shapes: K rows of the delta, D width of a row of the item table.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
from onnx.external_data_helper import set_external_data

from ctr.serving.bundle import ITEM_DELTA, RANKER
from ctr.serving.items import delta


def standalone_graph(bundle: Path) -> Any:
    """`ranker.onnx` as a model proto whose tables stay in their files.

    The graph of a bundle takes the rows of upserted items as an input with a default, because many versions share it.
    Here they are an initializer, `item_delta.bin`, so a client sends a request and nothing else.

    Args:
        bundle: its folder.
    """
    model = onnx.load(bundle / RANKER, load_external_data=False)
    graph = model.graph
    for opened in [value for value in graph.input if value.name == ITEM_DELTA]:
        graph.input.remove(opened)
    rows = bundle / delta.ROWS
    if rows.is_file():
        (tensor,) = (tensor for tensor in graph.initializer if tensor.name == ITEM_DELTA)
        width = tensor.dims[1]
        count = rows.stat().st_size // (4 * width)
        tensor.CopyFrom(
            onnx.TensorProto(name=ITEM_DELTA, data_type=onnx.TensorProto.FLOAT, dims=[count, width], raw_data=b" ")
        )
        set_external_data(tensor, delta.ROWS)
        tensor.ClearField("raw_data")
    return model


def table_files(model: Any) -> list[str]:
    """Names of the files beside the graph that hold its tables."""
    entries = (entry for tensor in model.graph.initializer for entry in tensor.external_data)
    return sorted({entry.value for entry in entries if entry.key == "location"})
