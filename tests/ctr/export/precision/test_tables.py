"""Item tables in fewer bits: what a graph reads of them, by hand."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.external_data_helper import set_external_data

from ctr.export.precision import tables
from ctr.export.precision.tables import Block, reduce_table
from ctr.serving.bundle import ITEM_TABLE, RANKER
from ctr.serving.ranker import open_session

ITEMS, WIDTH = 5, 6
BLOCKS = [Block(3, False), Block(2, False), Block(1, True)]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A graph that gives rows of its table, twice over."""
    folder = tmp_path / "source"
    folder.mkdir()
    table = TensorProto(name="item_table", data_type=TensorProto.FLOAT, dims=(ITEMS, WIDTH), raw_data=b" ")
    set_external_data(table, ITEM_TABLE, 0, ITEMS * WIDTH * 4)
    table.ClearField("raw_data")
    nodes = [
        helper.make_node("Gather", ["item_table", "index"], ["first"]),
        helper.make_node("Gather", ["item_table", "other"], ["second"]),
        helper.make_node("Concat", ["first", "second"], ["rows"], axis=0),
    ]
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, [name]) for name in ("index", "other")]
    output = helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["both", WIDTH])
    graph = helper.make_graph(nodes, "rows", inputs, [output], [table])
    item_rows().tofile(folder / ITEM_TABLE)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10),
        folder / RANKER,
    )
    return folder


def item_rows() -> np.ndarray:
    values = np.random.default_rng(1).normal(size=(ITEMS, WIDTH)).astype(np.float32)
    values[0] = 0  # the padding
    values[1, :3] *= 100  # the scale of one row is not that of another, nor that of its other block
    values[:, 5] = [0, 70_001, 3, 16_777_215, 5]  # indices, which half precision does not hold
    return values


def read(folder: Path) -> np.ndarray:
    session = open_session(folder / RANKER)
    (rows,) = session.run(None, {"index": np.arange(3), "other": np.array([4, 3])})
    return rows[[0, 1, 2, 4, 3]]


def reduced(source: Path, bits: str, blocks: list[Block] = BLOCKS) -> Path:
    target = source.parent / bits
    target.mkdir()
    reduce_table(source, target, blocks, bits)
    return target


def test_half_precision_holds_three_digits_and_indices_exactly(source: Path):
    rows, wanted = read(reduced(source, "fp16")), item_rows()
    np.testing.assert_array_equal(rows[:, :5], wanted[:, :5].astype(np.float16).astype(np.float32))
    np.testing.assert_array_equal(rows[:, 5], wanted[:, 5])
    assert (rows[:, :5] != wanted[:, :5]).any()


def test_whole_numbers_have_a_scale_for_each_row_of_each_block(source: Path):
    rows, wanted = read(reduced(source, "int8")), item_rows()
    for block in (slice(0, 3), slice(3, 5)):
        largest = np.abs(wanted[:, block]).max(axis=1, keepdims=True)
        # 127 steps up to the largest of the row; a value is at most half a step away.
        assert (np.abs(rows[:, block] - wanted[:, block]) <= largest / 127 / 2 * 1.0001).all()
        np.testing.assert_allclose(np.abs(rows[:, block]).max(axis=1, keepdims=True), largest, rtol=1e-6)
    np.testing.assert_array_equal(rows[:, 5], wanted[:, 5])
    np.testing.assert_array_equal(rows[0], np.zeros(WIDTH))


def test_the_largest_value_of_a_row_is_127_steps(source: Path):
    target = reduced(source, "int8")
    (block,) = (one for one in onnx.load(target / RANKER).graph.initializer if one.name == "item_table_0")
    codes = np.abs(onnx.numpy_helper.to_array(block).astype(int)).max(axis=1)
    assert codes.tolist() == [0, 127, 127, 127, 127]


def test_the_table_is_a_half_and_a_quarter_of_what_it_was(source: Path):
    """Each block begins at a page."""
    for bits, size in (("fp16", 2), ("int8", 1)):
        target = reduced(source, bits)
        stored = {one.name: one for one in onnx.load(target / RANKER, load_external_data=False).graph.initializer}
        lengths = {
            name: int(next(e.value for e in one.external_data if e.key == "length")) for name, one in stored.items()
        }
        assert lengths["item_table_0"] == ITEMS * 3 * size and lengths["item_table_2"] == ITEMS * 4
        offsets = [int(next(e.value for e in one.external_data if e.key == "offset")) for one in stored.values()]
        assert all(offset % 65_536 == 0 for offset in offsets)
        assert "item_table" not in stored


def test_values_that_half_precision_does_not_hold_become_its_largest(source: Path):
    values = item_rows()
    values[2, 0] = -1e6
    values.tofile(source / ITEM_TABLE)
    assert read(reduced(source, "fp16"))[2, 0] == -65504


@pytest.mark.parametrize("bits", ["fp16", "int8"])
def test_a_table_converted_in_chunks_is_that_of_one_chunk(source: Path, bits: str, monkeypatch: pytest.MonkeyPatch):
    wanted = read(reduced(source, bits))
    table = (source.parent / bits / ITEM_TABLE).read_bytes()
    (source.parent / bits).rename(source.parent / "whole")
    monkeypatch.setattr(tables, "ROWS", 2)
    np.testing.assert_array_equal(read(reduced(source, bits)), wanted)
    assert (source.parent / bits / ITEM_TABLE).read_bytes() == table


def test_one_block_is_read_by_one_gather(source: Path):
    rows = read(reduced(source, "fp16", [Block(WIDTH, True)]))
    np.testing.assert_array_equal(rows, item_rows())


def test_blocks_that_are_not_the_table_are_refused(source: Path):
    with pytest.raises(ValueError, match="are not the 6 columns"):
        reduced(source, "int8", BLOCKS[:2])
