from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from ctr.tables import frozen_tables
from features.feature_set import read_arrow, write_arrow


def test_tables_are_the_columns_widened_to_int64_without_a_word(tmp_path: Path):
    index = np.array([0, 1, 2], np.int32)
    tags = np.array([[0, 0], [1, 0], [3, 2]], np.int32)
    price = np.array([np.nan, 0.5, -1.0], np.float32)
    write_arrow(tmp_path / "items.arrow", {"item": index, "tags": tags, "price": price})
    np.save(tmp_path / "text.npy", np.eye(3, dtype=np.float32))
    feature_set = SimpleNamespace(
        schema=SimpleNamespace(vectors=[SimpleNamespace(name="text")]),
        items=read_arrow(tmp_path / "items.arrow"),
        users={"user": index},
        vectors=lambda name: np.load(tmp_path / f"{name}.npy", mmap_mode="r"),
        present=lambda name: np.array([False, True, True]),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tables = frozen_tables(feature_set)
    assert tables.items["item"].tolist() == [0, 1, 2] and tables.items["item"].dtype == torch.int64
    assert tables.items["tags"].tolist() == tags.tolist() and tables.items["tags"].dtype == torch.int64
    assert tables.items["price"].isnan().tolist() == [True, False, False]
    assert torch.equal(tables.vectors["text"], torch.eye(3))
    assert tables.present["text"].tolist() == [False, True, True]
    assert tables.users["user"].dtype == torch.int64
