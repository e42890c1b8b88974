"""Normalising and reducing: by hand, against scikit-learn, and fitted on training items alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.decomposition import PCA

from features.errors import DataError
from features.vectors.projections import to_unit
from features.vectors.transforms import covariance, mean_of, principal_axes
from tests.features.vector_files import VectorFiles

NONE = [np.nan] * 3
TRAINED = [True, True, True, True, False]
VECTORS = [[0.0, 2.0, 0.1], [1.0, 5.0, 0.1], NONE, [3.0, 4.0, 0.0], [9.0, 9.0, 9.0]]
HAS = [0, 1, 3, 4]


def built(folder: Path, vectors: Any = VECTORS, trained: Any = TRAINED, **embedding: Any) -> np.ndarray:
    files = VectorFiles(folder, {"text": vectors}, trained)
    files.build({"text": embedding})
    return files.vectors("text")


def random_vectors(count: int, width: int, seed: int = 0) -> np.ndarray:
    """Correlated dimensions of falling strength, far from the origin."""
    draw = np.random.default_rng(seed)
    return draw.normal(size=(count, width)) @ draw.normal(size=(width, width)) / np.arange(1, width + 1) + 5


def test_l2_by_hand(tmp_path: Path) -> None:
    aligned = built(tmp_path, [*VECTORS[:1], [0.0] * 3, *VECTORS[2:]], normalize="l2")
    np.testing.assert_allclose(aligned[3], [0.6, 0.8, 0.0], rtol=1e-6)
    assert not aligned[1].any()  # a vector of zeros stays one
    np.testing.assert_allclose(np.linalg.norm(aligned[[0, 3, 4]], axis=1), 1, rtol=1e-6)


def test_centre_by_hand(tmp_path: Path) -> None:
    # Mean of the training items (1, 2): what is left is (-3, 4), (3, -4), and (6, 8) of the new one.
    aligned = built(tmp_path, [[-2.0, 6.0], [4.0, -2.0], [7.0, 10.0]], trained=[True, True, False], normalize="centre")
    np.testing.assert_allclose(aligned, [[-0.6, 0.8], [0.6, -0.8], [0.6, 0.8]], rtol=1e-6)


def test_truncate_by_hand(tmp_path: Path) -> None:
    aligned = built(
        tmp_path, [[3.0, 4.0, 99.0], [0.0, 0.0, 1.0]], None, normalize="none", reduce={"method": "truncate", "dim": 2}
    )
    np.testing.assert_allclose(aligned, [[0.6, 0.8], [0.0, 0.0]], rtol=1e-6)


def test_sums_keep_their_precision_over_many_items() -> None:
    """Summed in float32, a mean over 200 000 items is off in its fourth digit."""
    values = np.random.default_rng(0).normal(1_000, 1, (200_000, 3)).astype(np.float32)
    everyone = np.arange(len(values))
    np.testing.assert_allclose(mean_of(values, everyone), values.mean(axis=0, dtype=np.float64), rtol=1e-7)
    found = covariance([values], [mean_of(values, everyone)], everyone)
    np.testing.assert_allclose(found, np.cov(values.T.astype(np.float64), bias=True), atol=1e-4)


@pytest.mark.parametrize("normalize", ["none", "l2"])
def test_reduced_as_by_scikit_learn_on_training_items(tmp_path: Path, normalize: str) -> None:
    raw = random_vectors(60, 8)
    trained = np.arange(60) < 45
    aligned = built(tmp_path, raw, trained, normalize=normalize, reduce={"method": "pca", "dim": 3})
    if normalize == "l2":
        raw = raw / np.linalg.norm(raw, axis=1, keepdims=True)
    literal = PCA(3, svd_solver="full").fit(raw[trained])
    np.testing.assert_allclose(aligned, literal.transform(raw), atol=2e-4)


@given(arrays(np.float32, (7, 4), elements=st.floats(-100, 100, width=32)))
def test_covariance_is_that_of_numpy_whatever_the_numbers(vectors_VW: np.ndarray) -> None:
    rows = np.array([0, 2, 3, 6])
    parts = [vectors_VW[:, :1], vectors_VW[:, 1:]]
    found = covariance(parts, [mean_of(part, rows) for part in parts], rows)
    np.testing.assert_allclose(found, np.cov(vectors_VW[rows].T.astype(np.float64), bias=True), atol=0.05)


@given(arrays(np.float32, (5, 3), elements=st.floats(-1000, 1000, width=32)))
def test_a_unit_vector_has_length_one_or_none(vectors_VW: np.ndarray) -> None:
    lengths = np.linalg.norm(to_unit(vectors_VW.copy()), axis=1)
    tiny = np.linalg.norm(vectors_VW.astype(np.float64), axis=1) < 1e-12
    assert ((np.abs(lengths - 1) < 1e-4) | tiny).all()


def test_the_sign_of_an_axis_does_not_depend_on_its_scale() -> None:
    matrix = np.cov(random_vectors(50, 6).T)
    axes = principal_axes(matrix, 6)
    scaled = principal_axes(matrix * 1e3, 6)
    np.testing.assert_allclose(axes, scaled, atol=1e-8)
    assert (axes[np.abs(axes).argmax(axis=0), np.arange(6)] > 0).all()


@pytest.mark.parametrize("normalize", ["none", "l2", "centre"])
@pytest.mark.parametrize("reduce", [None, {"method": "pca", "dim": 2}, {"method": "truncate", "dim": 2}])
def test_items_outside_training_move_no_other_vector(tmp_path: Path, normalize: str, reduce: Any) -> None:
    spec = {"normalize": normalize, "reduce": reduce}
    before = built(tmp_path, **spec)
    after = built(tmp_path, [*VECTORS[:4], [-7.0, 1.0, 100.0]], **spec)
    np.testing.assert_array_equal(before[:4], after[:4])
    assert not np.array_equal(before[4], after[4])  # the new item itself has its own, by what the others taught


@pytest.mark.parametrize(
    ("spec", "trained", "words"),
    [
        ({"reduce": {"method": "pca", "dim": 4}}, TRAINED, r"reduce.dim 4 is more than 3, the smaller of its width"),
        ({"reduce": {"method": "pca", "dim": 1}}, [False] * 5, r"reduce.dim 1 is more than 0"),
        ({"reduce": {"method": "truncate", "dim": 4}}, TRAINED, r"reduce.dim 4 is more than its width 3. Lower it."),
        (
            {"normalize": "centre"},
            [False] * 5,
            r"none of its items is in the training window.*normalize: centre. Use l2",
        ),
    ],
    ids=["wide", "untrained", "truncate", "centre"],
)
def test_what_cannot_be_fitted_is_named(tmp_path: Path, spec: Any, trained: Any, words: str) -> None:
    with pytest.raises(DataError, match=r"text.parquet: " + words) as error:
        built(tmp_path, VECTORS, trained, **{"normalize": "none", **spec})
    assert error.value.exit_code == 4
