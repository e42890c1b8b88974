from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ctr.data.feature_tables import FrozenTables, TableBuffers, frozen_tables
from features.errors import DataError
from features.store.feature_set import read_arrow, write_arrow
from features.store.schema import Field, Schema, VectorSet

SCHEMA = Schema(
    items=3,
    users=1,
    history_max_len=4,
    item=[Field(name="item", kind="categorical", size=3)],
    user=[Field(name="user", kind="categorical", size=1)],
    context=[],
    vectors=[VectorSet(name="text", width=2)],
)


def buffers(vectors: torch.Tensor, scales: dict[str, torch.Tensor], dtype: torch.dtype) -> TableBuffers:
    tables = FrozenTables(
        items={"item": torch.arange(3, dtype=torch.int32)},
        vectors={"text": vectors},
        present={"text": torch.tensor([False, True, True])},
        scales=scales,
    )
    return TableBuffers(tables, SCHEMA, [], like=torch.zeros(1, dtype=dtype))


def test_tables_are_the_columns_as_stored_without_a_word(tmp_path: Path):
    index = np.array([0, 1, 2], np.int32)
    tags = np.array([[0, 0], [1, 0], [3, 2]], np.int32)
    price = np.array([np.nan, 0.5, -1.0], np.float32)
    write_arrow(tmp_path / "items.arrow", {"item": index, "tags": tags, "price": price})
    np.save(tmp_path / "text.npy", np.eye(3, dtype=np.float16))
    stored = {
        "text": (np.load(tmp_path / "text.npy", mmap_mode="r"), None),
        "image": (np.array([[0, 0], [127, 64], [-3, 1]], np.int8), np.array([0, 0.5, 2], np.float32)),
    }
    feature_set = SimpleNamespace(
        schema=SimpleNamespace(
            vectors=[SimpleNamespace(name=name) for name in stored],
            item=[SimpleNamespace(name="item")],
        ),
        items=read_arrow(tmp_path / "items.arrow"),
        users={"user": index},
        item_versions=None,
        user_versions=None,
        stored_vectors=lambda name: stored[name],
        present=lambda name: np.array([False, True, True]),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tables = frozen_tables(feature_set)
    assert tables.items["item"].tolist() == [0, 1, 2] and tables.items["item"].dtype == torch.int32
    assert tables.items["tags"].tolist() == tags.tolist() and tables.items["tags"].dtype == torch.int32
    assert tables.items["price"].isnan().tolist() == [True, False, False]
    assert torch.equal(tables.vectors["text"], torch.eye(3, dtype=torch.float16))
    assert tables.vectors["image"].dtype == torch.int8
    assert {name: scale.tolist() for name, scale in tables.scales.items()} == {"image": [0, 0.5, 2]}
    assert tables.present["text"].tolist() == [False, True, True]
    assert tables.users["user"].dtype == torch.int32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_vectors_stay_as_stored_and_come_out_as_numbers_of_the_model(dtype: torch.dtype):
    rows = torch.tensor([2, 0], dtype=torch.int32)
    narrow = torch.tensor([[0, 0], [1.5, -2], [0.25, 3]], dtype=torch.float16)
    tables = buffers(narrow, {}, dtype)
    assert [buffer.dtype for name, buffer in tables.named_buffers() if name.startswith("vector")] == [torch.float16]
    (vectors,) = tables.vectors(rows)
    assert vectors.dtype == dtype and vectors.tolist() == [[0.25, 3], [0, 0]]

    quantised = torch.tensor([[0, 0], [127, 64], [-3, 1]], dtype=torch.int8)
    tables = buffers(quantised, {"text": torch.tensor([0, 0.5, 2])}, dtype)
    (vectors,) = tables.vectors(rows)
    assert vectors.dtype == dtype and vectors.tolist() == [[-6, 2], [0, 0]]


def test_vectors_of_the_models_own_type_are_not_copied():
    vectors = torch.randn(3, 2)
    tables = buffers(vectors, {}, torch.float32)
    assert [b.data_ptr() for n, b in tables.named_buffers() if n.startswith("vector")] == [vectors.data_ptr()]


def test_only_columns_that_change_are_read_at_the_version():
    versioned = FrozenTables(
        items={"item": torch.tensor([0, 1, 2]), "price": torch.tensor([0.0, 1.0, 7.0, 5.0, 7.0])},
        item_versions=2,
        vectors={"text": torch.eye(3)[:, :2]},
        present={"text": torch.tensor([False, True, True])},
    )
    schema = SCHEMA.model_copy(update={"item": (*SCHEMA.item, Field(name="price", kind="numeric"))})
    tables = TableBuffers(versioned, schema, [], like=torch.zeros(1))
    rows, versions = torch.tensor([2, 2, 2]), torch.tensor([3, 4, 1])
    assert [one.tolist() for one in tables.item_columns(rows, versions)] == [[2, 2, 2], [5.0, 7.0, 1.0]]
    assert [one.tolist() for one in tables.item_columns(rows)] == [[2, 2, 2], [7.0, 7.0, 7.0]]


def test_a_table_longer_than_its_versions_is_refused():
    longer = FrozenTables(items={"item": torch.zeros(6)}, item_versions=2, vectors={"text": torch.zeros(3, 2)})
    with pytest.raises(DataError, match="6 rows where the schema has 3"):
        TableBuffers(longer, SCHEMA, [], like=torch.zeros(1))
