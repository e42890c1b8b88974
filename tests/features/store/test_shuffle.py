"""Rows by shard: what comes back is what went in, lists of any size among it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from features.store.shuffle import shuffle_by_key


def test_lists_of_one_shard_hold_more_than_32_bits_count(tmp_path: Path) -> None:
    # Items of no type take no memory, however many there are.
    lists = pa.LargeListArray.from_arrays(pa.array([0, 2**30]), pa.nulls(2**30))
    (shard,) = shuffle_by_key([{"key": np.zeros(1, int), "lists": lists}] * 3, "key", 1, tmp_path / "scratch")
    assert shard["lists"].offsets.to_pylist() == [0, 2**30, 2**31, 3 * 2**30]


@pytest.mark.parametrize("shards", [1, 2])
def test_rows_come_back_in_their_order(tmp_path: Path, shards: int) -> None:
    chunks = [
        {"key": np.array([0, 1, 2]), "lists": pa.array([[1], [], [2, 3]], pa.large_list(pa.int32()))},
        {"key": np.array([2, 1]), "lists": pa.array([[4], [5]], pa.large_list(pa.int32()))},
    ]
    found = [
        dict(zip(("key", "lists"), (shard["key"].tolist(), shard["lists"].to_pylist()), strict=True))
        for shard in shuffle_by_key(chunks, "key", shards, tmp_path / "scratch")
    ]
    whole = [{"key": [0, 1, 2, 2, 1], "lists": [[1], [], [2, 3], [4], [5]]}]
    divided = [{"key": [0, 2, 2], "lists": [[1], [2, 3], [4]]}, {"key": [1, 1], "lists": [[], [5]]}]
    assert found == (whole if shards == 1 else divided)
