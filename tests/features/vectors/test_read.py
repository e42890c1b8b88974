"""Item vectors as they are read: every kind of file, aligned to the catalogue, and the messages of broken ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from features.encoding.vocabulary import Vocabulary
from features.errors import DataError
from features.store.schema import VectorSet
from features.vectors.build import VectorResult, build_vectors
from tests.features.vector_files import contract_of, write_set

ITEMS = Vocabulary(pl.Series([10, 20, 30, 40, 50]))
TRAINED = np.array([False, False, True, True, True, True, False])  # all but item 50, catalogue row 6
VECTORS = {40: [3.0, 4.0, 0.0], 10: [0.0, 2.0, 0.1], 50: [9.0, 9.0, 9.0], 99: [1.0, 1.0, 1.0], 20: [1.0, 5.0, 0.1]}


def build(folder: Path, **embedding: Any) -> VectorResult:
    contract = contract_of(folder, {"text": embedding})
    return build_vectors(contract, ITEMS, TRAINED, {}, None, folder / "out")


def built(
    folder: Path, vectors: dict[int, list[float]] = VECTORS, **embedding: Any
) -> tuple[VectorResult, np.ndarray, np.ndarray]:
    write_set(folder, "text", np.array(list(vectors.values())), vectors)
    return build(folder, **embedding), *stored(folder)


def stored(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    return np.load(folder / "out/embeddings/text.npy"), np.load(folder / "out/embeddings/text.present.npy")


def test_aligned_by_hand(tmp_path: Path) -> None:
    result, aligned, present = built(tmp_path, normalize="none")
    # Rows: padding, unknown, 10, 20, 30 (has none), 40, 50. Item 99 is in no catalogue.
    assert aligned.dtype == np.float32 and aligned.shape == (7, 3)
    nothing = [0.0] * 3
    expected = [nothing, nothing, VECTORS[10], VECTORS[20], nothing, VECTORS[40], VECTORS[50]]
    np.testing.assert_array_equal(aligned, np.array(expected, np.float32))
    assert present.tolist() == [False, False, True, True, False, True, True]
    assert result.sets == (VectorSet(name="text", width=3, complete=False),) and result.coverage == {"text": 4 / 5}


@pytest.mark.parametrize("dtype", [pl.Array(pl.Float32, 3), pl.List(pl.Float64), pl.List(pl.Int16)])
def test_every_kind_of_list_reads_the_same(tmp_path: Path, dtype: Any) -> None:
    vectors = {10: [1.0, 2.0, 3.0], 20: [4.0, 5.0, 6.0]}
    _, expected, _ = built(tmp_path, vectors)
    table = pl.DataFrame({"id": [10, 20], "v": pl.Series(list(vectors.values())).cast(dtype)})
    table.write_parquet(tmp_path / "other.parquet")
    build(tmp_path, path="other.parquet", id="id", vector="v")
    np.testing.assert_array_equal(stored(tmp_path)[0], expected)


def build_npy(folder: Path, vectors: Any, ids: list[int]) -> VectorResult:
    np.save(folder / "text.npy", vectors)
    pl.DataFrame({"item_id": ids}).write_csv(folder / "ids.csv")
    return build(folder, path="text.npy", ids="ids.csv")


def test_npy_with_ids_reads_the_same(tmp_path: Path) -> None:
    _, expected, _ = built(tmp_path)
    build_npy(tmp_path, np.array(list(VECTORS.values()), np.float64), list(VECTORS))
    np.testing.assert_array_equal(stored(tmp_path)[0], expected)


@pytest.mark.parametrize(
    ("vectors", "words"),
    [
        (np.ones((3, 2)), r"text.npy: shape \(3, 2\) does not fit the 2 ids of .*ids.csv"),
        (np.ones(2), r"shape \(2,\)"),
        (np.array([["a"], ["b"]]), r"text.npy: .*numbers"),
        (np.array([[1], [None]], object), r"text.npy: cannot be read"),
        (np.empty((2, 0)), r"text.npy: holds no vectors"),
        (np.array([[1.0], [1e39]]), r"text.npy: 1 of 2 vectors hold NaN or infinity, .*e.g. that of id 20"),
        (np.array([[1e15], [-1.1e15]]), r"text.npy: 1 of 2 vectors hold .* numbers beyond 1e\+15, e.g. that of id 20"),
    ],
    ids=["rows", "flat", "text", "objects", "no numbers", "beyond float32", "beyond its square root"],
)
def test_a_bad_npy_is_named(tmp_path: Path, vectors: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        build_npy(tmp_path, vectors, [10, 20])


def test_a_torn_npy_is_named(tmp_path: Path) -> None:
    build_npy(tmp_path, np.ones((2, 3)), [10, 20])
    (tmp_path / "text.npy").write_bytes((tmp_path / "text.npy").read_bytes()[:100])
    with pytest.raises(DataError, match=r"text.npy: cannot be read"):
        build(tmp_path, path="text.npy", ids="ids.csv")


def test_several_arrays_of_one_file_are_named(tmp_path: Path) -> None:
    with (tmp_path / "text.npy").open("wb") as file:
        np.savez(file, np.ones((2, 3)))
    pl.DataFrame({"item_id": [10, 20]}).write_csv(tmp_path / "ids.csv")
    with pytest.raises(DataError, match=r"text\.npy: cannot be read as npy: it is a .npz of several arrays"):
        build(tmp_path, path="text.npy", ids="ids.csv")


def test_a_npy_without_ids_is_named(tmp_path: Path) -> None:
    np.save(tmp_path / "text.npy", np.ones((2, 3)))
    with pytest.raises(DataError, match=r"text.npy: a .npy file has no ids. Name the table of its ids under `ids`"):
        build(tmp_path, path="text.npy")


def test_empty_lists_are_no_vectors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"text.parquet: holds no vectors"):
        built(tmp_path, {10: [], 20: []})


def test_vectors_of_other_items_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"text.parquet: none of its 2 ids \(e.g. 77\) .* \(e.g. 10\).*embeddings.text.id"
    ):
        built(tmp_path, {77: [1.0], 78: [2.0]})


def test_several_npy_files_are_refused(tmp_path: Path) -> None:
    for name in ("a1.npy", "a2.npy"):
        np.save(tmp_path / name, np.ones((2, 3)))
    with pytest.raises(DataError, match=r"a\*.npy: names 2 files, e.g. .*a2.npy. Write the vectors as one .npy"):
        build(tmp_path, path="a*.npy", ids="ids.csv")


def test_npy_and_ids_behind_a_url(tmp_path: Path) -> None:
    import fsspec

    _, expected, _ = built(tmp_path)
    memory = fsspec.filesystem("memory")
    np.save(tmp_path / "text.npy", np.array(list(VECTORS.values())))
    memory.pipe("/vectors/text.npy", (tmp_path / "text.npy").read_bytes())
    memory.pipe("/vectors/ids.csv", "\n".join(["item_id", *map(str, VECTORS)]).encode())
    build(tmp_path, path="memory://vectors/text.npy", ids="memory://vectors/ids.csv")
    np.testing.assert_array_equal(stored(tmp_path)[0], expected)
