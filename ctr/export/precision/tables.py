"""The item table of a graph in fewer bits: half precision, or whole numbers of 8 bits with a scale a row.

Shapes: I items, D width of a row of the item table, W width of one block of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, TensorProto, helper
from onnx.external_data_helper import set_external_data

from ctr.serving.bundle import ITEM_TABLE, RANKER, SCORER

Bits = Literal["fp16", "int8"]
# What reads rows of a block: the names of an index and of an output, float32, to nodes.
Gather = Callable[[str, str], list[NodeProto]]
TABLE = "item_table"
LARGEST = 127  # of int8, used on both sides of zero
LARGEST_HALF = float(np.finfo(np.float16).max)
ALIGNMENT = 65_536  # of each tensor in the file: the largest page of memory in use
ROWS = 16_384  # of the table that are converted at a time


@dataclass(frozen=True)
class Block:
    """Neighbouring columns of the item table: W of them, `exact` where they hold indices, which stay as they are."""

    width: int
    exact: bool


def reduce_table(source: Path, target: Path, blocks: Sequence[Block], bits: Bits) -> None:
    """Write a copy of the graphs that read the item table, and of the table, which gets fewer bits.

    Each gather from the table becomes gathers from its blocks, whose rows are brought back to single precision at once:
    whatever follows in the graph is as it was. Rows that came after the export (`item_delta`) stay in single precision.

    Args:
        source: folder of `ranker.onnx`, and maybe `scorer.onnx`, in single precision, with their table.
        target: folder of the new graphs and table.
        blocks: of the columns from left to right, together all of them.
        bits: of the blocks that are not exact. A value that half precision does not hold becomes its largest.
    """
    stored: list[TensorProto] = []
    gathers: list[Gather] = []
    for name in (RANKER, SCORER):
        if not (source / name).is_file():
            continue
        model = onnx.load(source / name, load_external_data=False)
        (table,) = (tensor for tensor in model.graph.initializer if tensor.name == TABLE)
        if not gathers:
            with (target / ITEM_TABLE).open("wb") as file:
                gathers += _stored_blocks(source, table.dims, blocks, bits, stored, file)
        model.graph.initializer.remove(table)
        model.graph.initializer.extend(stored)
        _read_blocks(model.graph, gathers)
        onnx.save(model, target / name)
        onnx.checker.check_model(target / name, full_check=True)


def _stored_blocks(
    source: Path, shape: Sequence[int], blocks: Sequence[Block], bits: Bits, stored: list[TensorProto], file: BinaryIO
) -> Iterator[Gather]:
    if sum(block.width for block in blocks) != shape[1]:
        raise ValueError(f"blocks {blocks} are not the {shape[1]} columns of the item table")
    table_ID = np.memmap(source / ITEM_TABLE, np.float32, mode="r", shape=tuple(shape))
    start = 0
    for number, block in enumerate(blocks):
        values_IW = table_ID[:, start : start + block.width]
        yield _stored(stored, f"{TABLE}_{number}", values_IW, "fp32" if block.exact else bits, file)
        start += block.width


def _read_blocks(graph: GraphProto, gathers: Sequence[Gather]) -> None:
    nodes: list[NodeProto] = []
    for node in graph.node:
        if node.op_type == "Gather" and node.input[0] == TABLE:
            nodes += _gathered(node, gathers)
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def _stored(stored: list[TensorProto], name: str, values_IW: np.ndarray, bits: str, file: BinaryIO) -> Gather:
    """Append a block to the file and to the tensors; returns what reads rows of it, float32."""

    def append(name: str, kind: int, width: int, convert: Callable[[np.ndarray], np.ndarray]) -> None:
        # A chunk after the other: the block is larger than memory may be.
        chunks = (convert(values_IW[start : start + ROWS]) for start in range(0, len(values_IW), ROWS))
        stored.append(_append(name, kind, (len(values_IW), width), chunks, file))

    width = values_IW.shape[1]
    if bits == "fp32":
        append(name, TensorProto.FLOAT, width, np.ascontiguousarray)
        return lambda index, out: [helper.make_node("Gather", [name, index], [out])]
    if bits == "fp16":
        append(name, TensorProto.FLOAT16, width, _half)
        return lambda index, out: [
            helper.make_node("Gather", [name, index], [f"{out}_half"]),
            helper.make_node("Cast", [f"{out}_half"], [out], to=TensorProto.FLOAT),
        ]
    append(name, TensorProto.INT8, width, lambda rows: np.rint(rows / _scale(rows)).astype(np.int8))
    append(f"{name}_scale", TensorProto.FLOAT, 1, _scale)
    return lambda index, out: [
        helper.make_node("Gather", [name, index], [f"{out}_whole"]),
        helper.make_node("Gather", [f"{name}_scale", index], [f"{out}_scale"]),
        helper.make_node("Cast", [f"{out}_whole"], [f"{out}_unscaled"], to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{out}_unscaled", f"{out}_scale"], [out]),
    ]


def _half(rows_RW: np.ndarray) -> np.ndarray:
    return np.clip(rows_RW, -LARGEST_HALF, LARGEST_HALF).astype(np.float16)


def _scale(rows_RW: np.ndarray) -> np.ndarray:
    """What one step of each row is, float32 [R, 1]; 1 for a row of zeros."""
    scale_R1 = np.abs(rows_RW).max(axis=1, keepdims=True) / LARGEST
    scale_R1[scale_R1 == 0] = 1
    return scale_R1.astype(np.float32)


def _append(name: str, kind: int, shape: tuple[int, int], chunks: Iterable[np.ndarray], file: BinaryIO) -> TensorProto:
    file.write(bytes(-file.tell() % ALIGNMENT))
    start = file.tell()
    for chunk in chunks:
        chunk.tofile(file)
    tensor = TensorProto(name=name, data_type=kind, dims=shape, raw_data=b" ")
    set_external_data(tensor, ITEM_TABLE, start, file.tell() - start)
    tensor.ClearField("raw_data")
    return tensor


def _gathered(node: NodeProto, gathers: Sequence[Gather]) -> list[NodeProto]:
    """What replaces a gather from the whole table."""
    index, (out,) = node.input[1], node.output
    if len(gathers) == 1:
        return gathers[0](index, out)
    parts = [f"{out}_block_{number}" for number in range(len(gathers))]
    nodes = [made for gather, part in zip(gathers, parts, strict=True) for made in gather(index, part)]
    return [*nodes, helper.make_node("Concat", parts, [out], axis=-1)]
