"""Item vectors: aligned to the catalogue, normalised, reduced, and fitted on training items alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn.decomposition import PCA

from features.contract import Contract
from features.embeddings import build_embedding
from features.errors import DataError
from features.schema import VectorSet
from features.vocabulary import Vocabulary

ITEMS = Vocabulary(pl.Series([10, 20, 30, 40, 50]))
TRAINED = np.array([False, False, True, True, True, True, False])  # all but item 50, catalogue row 6
VECTORS = {40: [3.0, 4.0, 0.0], 10: [0.0, 2.0, 0.1], 50: [9.0, 9.0, 9.0], 99: [1.0, 1.0, 1.0], 20: [1.0, 5.0, 0.1]}


def contract_of(folder: Path, **embedding: Any) -> Contract:
    log = {"path": "log.csv", "user": "u", "item": "i", "time": "t", "label": "y"}
    sets = {"text": {"path": "text.parquet", **embedding}}
    return Contract.model_validate({"name": "c", "root": str(folder), "interactions": log, "embeddings": sets})


def built(
    folder: Path, vectors: dict[int, list[float]] = VECTORS, **embedding: Any
) -> tuple[VectorSet, float, np.ndarray, np.ndarray]:
    pl.DataFrame({"item_id": list(vectors), "vector": list(vectors.values())}).write_parquet(folder / "text.parquet")
    made, coverage = build_embedding("text", contract_of(folder, **embedding), ITEMS, TRAINED, folder / "out")
    return made, coverage, np.load(folder / "out" / "text.npy"), np.load(folder / "out" / "text.present.npy")


def test_aligned_by_hand(tmp_path: Path) -> None:
    made, coverage, aligned, present = built(tmp_path, normalize="none")
    # Rows: padding, unknown, 10, 20, 30 (has none), 40, 50. Item 99 is in no catalogue.
    assert aligned.dtype == np.float32 and aligned.shape == (7, 3)
    nothing = [0.0] * 3
    expected = [nothing, nothing, VECTORS[10], VECTORS[20], nothing, VECTORS[40], VECTORS[50]]
    np.testing.assert_array_equal(aligned, np.array(expected, np.float32))
    assert present.tolist() == [False, False, True, True, False, True, True]
    assert made == VectorSet(name="text", width=3, complete=False) and coverage == 4 / 5


def test_l2_by_hand(tmp_path: Path) -> None:
    _, _, aligned, _ = built(tmp_path, VECTORS | {20: [0.0, 0.0, 0.0]})
    np.testing.assert_allclose(aligned[5], [0.6, 0.8, 0.0], rtol=1e-6)
    assert not aligned[3].any()  # a vector of zeros stays one
    np.testing.assert_allclose(np.linalg.norm(aligned[[2, 5, 6]], axis=1), 1, rtol=1e-6)


def test_standardize_by_training_items_alone(tmp_path: Path) -> None:
    constant = VECTORS | {10: [0.0, 2.0, 0.7], 20: [1.0, 5.0, 0.7], 40: [3.0, 4.0, 0.7]}
    _, _, aligned, _ = built(tmp_path, constant, normalize="standardize")
    train = np.array([constant[i] for i in (10, 20, 40)], np.float32)
    # The third dimension is 0.7 for every training item: deviation 1, not the 1e-8 that rounding leaves of it.
    deviation = np.array([*train[:, :2].std(axis=0), 1.0])
    expected = (np.array(VECTORS[50]) - train.mean(axis=0)) / deviation
    np.testing.assert_allclose(aligned[6], expected, rtol=1e-5)
    np.testing.assert_allclose(aligned[[2, 3, 5]].mean(axis=0), 0, atol=1e-6)


def test_standardize_keeps_its_precision_over_many_items(tmp_path: Path) -> None:
    """Summed in float32, a mean over 200 000 items is off in its fourth digit."""
    ids = np.arange(200_000)
    values = np.random.default_rng(0).normal(1_000, 1, (len(ids), 3)).astype(np.float32)
    np.save(tmp_path / "text.npy", values)
    pl.DataFrame({"item_id": ids}).write_parquet(tmp_path / "ids.parquet")
    contract = contract_of(tmp_path, path="text.npy", ids="ids.parquet", normalize="standardize")
    build_embedding("text", contract, Vocabulary(pl.Series(ids)), np.ones(len(ids) + 2, bool), tmp_path / "out")
    aligned = np.load(tmp_path / "out" / "text.npy")[2:]
    assert abs(aligned.mean(dtype=np.float64)) < 1e-4 and aligned.std(dtype=np.float64) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("normalize", ["none", "l2"])
def test_pca_is_that_of_training_items(tmp_path: Path, normalize: str) -> None:
    reduce = {"method": "pca", "dim": 2}
    made, _, aligned, _ = built(tmp_path, normalize=normalize, reduce=reduce)
    raw = np.array([VECTORS[i] for i in (10, 20, 40, 50)], np.float32)
    if normalize == "l2":
        raw = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    expected = PCA(2, svd_solver="full").fit(raw[:3]).transform(raw)
    np.testing.assert_allclose(aligned[[2, 3, 5, 6]], expected, atol=1e-5)
    assert made.width == 2 and not aligned[[0, 1, 4]].any()


@pytest.mark.parametrize("normalize", ["none", "l2", "standardize"])
def test_items_outside_training_move_no_other_vector(tmp_path: Path, normalize: str) -> None:
    reduce = {"method": "pca", "dim": 2}
    _, _, before, _ = built(tmp_path, normalize=normalize, reduce=reduce)
    _, _, after, _ = built(tmp_path, VECTORS | {50: [-7.0, 1.0, 100.0]}, normalize=normalize, reduce=reduce)
    np.testing.assert_array_equal(before[:6], after[:6])
    assert not np.array_equal(before[6], after[6])


@pytest.mark.parametrize("dtype", [pl.Array(pl.Float32, 3), pl.List(pl.Float64), pl.List(pl.Int16)])
def test_every_kind_of_list_reads_the_same(tmp_path: Path, dtype: Any) -> None:
    vectors = {10: [1.0, 2.0, 3.0], 20: [4.0, 5.0, 6.0]}
    _, _, expected, _ = built(tmp_path, vectors)
    table = pl.DataFrame({"id": [10, 20], "v": pl.Series(list(vectors.values())).cast(dtype)})
    table.write_parquet(tmp_path / "other.parquet")
    contract = contract_of(tmp_path, path="other.parquet", id="id", vector="v")
    build_embedding("text", contract, ITEMS, TRAINED, tmp_path / "out")
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "text.npy"), expected)


def npy(folder: Path, vectors: Any, ids: list[int]) -> Contract:
    np.save(folder / "text.npy", vectors)
    pl.DataFrame({"item_id": ids}).write_csv(folder / "ids.csv")
    return contract_of(folder, path="text.npy", ids="ids.csv")


def test_npy_with_ids_reads_the_same(tmp_path: Path) -> None:
    _, _, expected, _ = built(tmp_path)
    contract = npy(tmp_path, np.array(list(VECTORS.values()), np.float64), list(VECTORS))
    build_embedding("text", contract, ITEMS, TRAINED, tmp_path / "out")
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "text.npy"), expected)


@pytest.mark.parametrize(
    ("vectors", "words"),
    [
        (np.ones((3, 2)), r"text.npy: shape \(3, 2\) does not fit the 2 ids of .*ids.csv"),
        (np.ones(2), r"shape \(2,\)"),
        (np.array([["a"], ["b"]]), r"text.npy: .*numbers"),
        (np.array([[1], [None]], object), r"text.npy: cannot be read"),
    ],
    ids=["rows", "flat", "text", "objects"],
)
def test_a_bad_npy_is_named(tmp_path: Path, vectors: Any, words: str) -> None:
    contract = npy(tmp_path, vectors, [10, 20])
    with pytest.raises(DataError, match=words):
        build_embedding("text", contract, ITEMS, TRAINED, tmp_path / "out")


def test_a_torn_npy_is_named(tmp_path: Path) -> None:
    contract = npy(tmp_path, np.ones((2, 3)), [10, 20])
    (tmp_path / "text.npy").write_bytes((tmp_path / "text.npy").read_bytes()[:100])
    with pytest.raises(DataError, match=r"text.npy: cannot be read"):
        build_embedding("text", contract, ITEMS, TRAINED, tmp_path / "out")
