"""Vector sets on disk: each dtype keeps its promise of precision, and a feature set decodes what was stored."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from features.errors import DataError
from features.store.feature_set import FeatureSet, Manifest
from features.store.schema import Schema, VectorSet
from features.store.vector_files import Dtype, ItemVectors, decoded, read_stored, write_vectors


def one_set(vectors: Any) -> ItemVectors:
    vectors_IW = np.asarray(vectors, np.float32)
    return ItemVectors("text", vectors_IW, vectors_IW.any(axis=1), np.zeros(len(vectors_IW), bool))


def kept(folder: Path, vectors: Any, dtype: Dtype) -> np.ndarray:
    write_vectors(folder, one_set(vectors), dtype)
    return decoded(*read_stored(folder, "text"))


def test_int8_by_hand(tmp_path: Path) -> None:
    # scale = 1.27 / 127 = 0.01 and 254 / 127 = 2; -3 / 2 = -1.5 is rounded to the even -2.
    vectors = kept(tmp_path, [[0, 0], [1.27, -0.5], [-3, 254]], "int8")
    stored, scale = read_stored(tmp_path, "text")
    assert stored.dtype == np.int8 and stored.tolist() == [[0, 0], [127, -50], [-2, 127]]
    np.testing.assert_allclose(scale, [0, 0.01, 2], rtol=1e-6)
    np.testing.assert_allclose(vectors, [[0, 0], [1.27, -0.5], [-4, 254]], rtol=1e-6)


NUMBERS = arrays(np.float32, (6, 5), elements=st.floats(-60_000, 60_000, width=32))


@given(NUMBERS)
def test_int8_is_off_by_at_most_half_a_step(tmp_path_factory: pytest.TempPathFactory, vectors: np.ndarray) -> None:
    wrong = np.abs(kept(tmp_path_factory.mktemp("set"), vectors, "int8") - vectors)
    largest = np.abs(vectors).max(axis=1, keepdims=True)
    # A hair for the rounding of the division itself; numbers near the smallest of float32 have no finer steps.
    assert (wrong <= largest / 254 * (1 + 1e-4) + 1e-43).all()


@given(NUMBERS)
def test_float16_is_off_by_its_last_digit(tmp_path_factory: pytest.TempPathFactory, vectors: np.ndarray) -> None:
    wrong = np.abs(kept(tmp_path_factory.mktemp("set"), vectors, "float16") - vectors)
    assert (wrong <= np.maximum(np.abs(vectors) * 2.0**-11, 2.0**-25)).all()


def test_unit_vectors_of_128_dimensions_keep_their_cosines(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(200, 128)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = vectors @ vectors.T
    for dtype, worst in (("float16", 2e-4), ("int8", 5e-3)):
        found = kept(tmp_path, vectors, cast(Dtype, dtype))
        assert 0 < np.abs(found @ found.T - cosines).max() < worst


def test_float32_is_exact_and_mapped(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    found = kept(tmp_path, vectors, "float32")
    np.testing.assert_array_equal(found, vectors)
    assert isinstance(found, np.memmap)


def test_bytes_on_disk(tmp_path: Path) -> None:
    vectors = np.ones((1000, 64), np.float32)
    sizes = {}
    for dtype in ("float32", "float16", "int8"):
        write_vectors(tmp_path / dtype, one_set(vectors), cast(Dtype, dtype))
        sizes[dtype] = (tmp_path / dtype / "text.npy").stat().st_size - 128  # the header
    assert sizes == {"float32": 256_000, "float16": 128_000, "int8": 64_000}


def test_beyond_float16_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'text': 1 of 2 vectors hold .* e.g. 70000 .*65504.*or choose float32"):
        write_vectors(tmp_path, one_set([[0, 0], [1, 2], [3, -70_000]]), "float16")


def feature_set(folder: Path, *names: str) -> FeatureSet:
    sets = tuple(VectorSet(name=name, width=2) for name in names)
    schema = Schema(items=3, users=2, item=(), user=(), vectors=sets, history_max_len=1)
    return FeatureSet(folder, cast(Manifest, SimpleNamespace(schema_=schema)))


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_a_feature_set_gives_float32_whatever_is_stored(tmp_path: Path, dtype: Dtype) -> None:
    write_vectors(tmp_path / "embeddings", one_set([[0, 0], [1, 0.5], [0, 0]]), dtype)
    opened = feature_set(tmp_path, "text")
    vectors = opened.vectors("text")
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, [[0, 0], [1, 0.5], [0, 0]], atol=1 / 254)
    stored, scale = opened.stored_vectors("text")
    assert stored.dtype == dtype and (scale is not None) == (dtype == "int8")
    assert opened.present("text").tolist() == [False, True, False]


def test_a_set_that_is_not_kept_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no vector set 'text'; it holds both. .*`keep_parts: true`"):
        feature_set(tmp_path, "both").vectors("text")
