"""Fused sets: against literal PCA, canonical correlation and its generalisation; items that lack a part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.linalg import eigh
from sklearn.cross_decomposition import CCA
from sklearn.decomposition import PCA

from features.errors import DataError
from features.store.schema import VectorSet
from features.vectors.fusion import CCA_RIDGE
from tests.features.vector_files import VectorFiles

COUNT, TRAIN = 240, 200
HOWS = ["concat_pca", "pca_concat", "cca"]


def views(*widths: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Sets that show the same two factors with noise of their own, and lie far from the origin."""
    draw = np.random.default_rng(seed)
    factors = draw.normal(size=(COUNT, 2)) * [2, 1]
    return {
        f"set{place}": factors @ draw.normal(size=(2, width)) + 0.5 * draw.normal(size=(COUNT, width)) + 3
        for place, width in enumerate(widths)
    }


def fused(folder: Path, sets: dict[str, np.ndarray], how: str, dim: int = 2, **missing: Any) -> VectorFiles:
    files = VectorFiles(folder, sets, np.arange(COUNT) < TRAIN)
    parts = {name: {"normalize": "none", **missing.get(name, {})} for name in sets}
    files.build(parts, {"fusion": {"both": {"sets": list(sets), "how": how, "dim": dim}}})
    return files


def without(vectors: np.ndarray, items: Any) -> np.ndarray:
    result = vectors.copy()
    result[items] = np.nan
    return result


def test_concat_pca_is_pca_of_all_side_by_side(tmp_path: Path) -> None:
    sets = views(4, 3)
    joined = np.concatenate(list(sets.values()), axis=1)
    expected = PCA(2, svd_solver="full").fit(joined[:TRAIN]).transform(joined)
    np.testing.assert_allclose(fused(tmp_path, sets, "concat_pca").vectors("both"), expected, atol=1e-4)


def test_pca_concat_is_pca_of_each_side_by_side(tmp_path: Path) -> None:
    sets = views(4, 3, 5)
    # 7 dimensions over three sets: 3, 2 and 2.
    each = [PCA(dim, svd_solver="full").fit(v[:TRAIN]).transform(v) for dim, v in zip((3, 2, 2), sets.values())]  # noqa: B905
    found = fused(tmp_path, sets, "pca_concat", 7).vectors("both")
    np.testing.assert_allclose(found, np.concatenate(each, axis=1), atol=1e-4)


def test_cca_of_two_sets_is_canonical_correlation(tmp_path: Path) -> None:
    sets = views(4, 3)
    literal = CCA(2, scale=False, max_iter=5_000, tol=1e-10).fit(*(v[:TRAIN] for v in sets.values()))
    variates = literal.transform(*sets.values())
    # Each side of unit variance, and turned alike: their mean is what both agree on.
    expected = sum(side / side[:TRAIN].std(axis=0) for side in variates) / 2
    found = fused(tmp_path, sets, "cca").vectors("both")
    agreement = [abs(np.corrcoef(expected[:, d], found[:, d])[0, 1]) for d in range(2)]
    assert min(agreement) > 0.9995  # not 1: the ridge
    np.testing.assert_allclose(found[:TRAIN].std(axis=0), expected[:TRAIN].std(axis=0), rtol=0.02)


def test_cca_of_three_sets_solves_the_generalised_problem(tmp_path: Path) -> None:
    sets = views(3, 4, 5)
    centred = [v - v[:TRAIN].mean(axis=0) for v in sets.values()]
    joined = np.concatenate(centred, axis=1)
    whole = np.cov(joined[:TRAIN].T, bias=True)
    own, first = np.zeros_like(whole), 0
    for part in centred:
        block = slice(first, first + part.shape[1])
        own[block, block] = whole[block, block]
        own[block, block] += CCA_RIDGE * np.trace(whole[block, block]) / part.shape[1] * np.eye(part.shape[1])
        first += part.shape[1]
    _, solutions = eigh(whole, own)
    leading = solutions[:, ::-1][:, :2]
    expected = joined @ leading / np.sqrt(3)  # the mean over three parts of variates brought back by sqrt(3)
    found = fused(tmp_path, sets, "cca").vectors("both")
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-4)


def test_cca_finds_what_is_shared_below_what_is_strong(tmp_path: Path) -> None:
    draw = np.random.default_rng(3)
    shared = draw.normal(size=COUNT)
    sets = {
        name: np.stack([shared + 0.1 * draw.normal(size=COUNT), 10 * draw.normal(size=COUNT)], axis=1)
        for name in ("text", "image")
    }
    agreement = {}
    for how in ("cca", "concat_pca"):
        first = fused(tmp_path, sets, how, 1).vectors("both")[:, 0]
        agreement[how] = abs(np.corrcoef(first, shared)[0, 1])
    # Strong noise costs concatenation the shared dimension; the ridge, 0.05 here, takes little of a variance of 1.
    assert agreement["cca"] > 0.95 and agreement["concat_pca"] < 0.5


@pytest.mark.parametrize("how", HOWS)
def test_a_missing_part_adds_nothing(tmp_path: Path, how: str) -> None:
    """Set alone against literal: what both parts give an item is the sum (CCA: the mean) of what each gives."""
    sets = views(3, 3)
    new = TRAIN  # an item that fitting does not see
    both = fused(tmp_path, sets, how).vectors("both")[new]
    alone = []
    for lacking in sets:
        changed = {name: without(v, [new]) if name == lacking else v for name, v in sets.items()}
        alone.append(fused(tmp_path, changed, how).vectors("both")[new])
    together = (alone[0] + alone[1]) / (2 if how == "cca" else 1)
    np.testing.assert_allclose(together, both, atol=1e-4)
    assert np.abs(alone).max() > 0.1


@pytest.mark.parametrize("how", HOWS)
def test_present_where_a_part_is_and_zero_where_none(tmp_path: Path, how: str) -> None:
    first, second = views(3, 3).values()
    files = fused(tmp_path, {"a": without(first, [5, 7]), "b": without(second, [5, 9])}, how)
    assert np.flatnonzero(~np.array(files.present("both"))).tolist() == [5]
    lengths = np.linalg.norm(files.vectors("both"), axis=1)
    assert np.flatnonzero(lengths == 0).tolist() == [5]


@pytest.mark.parametrize("how", HOWS)
def test_a_part_lent_by_neighbours_counts(tmp_path: Path, how: str) -> None:
    sets = views(3, 3)
    missing = {"set0": without(sets["set0"], [4]), "set1": sets["set1"]}
    zero = fused(tmp_path, missing, how).vectors("both")
    lent = fused(tmp_path, missing, how, set0={"missing": {"by": "set1", "k": 3}}).vectors("both")
    others = np.arange(COUNT) != 4
    np.testing.assert_array_equal(zero[others], lent[others])  # what was lent is not fitted on
    assert not np.allclose(zero[4], lent[4])


@pytest.mark.parametrize("how", HOWS)
def test_items_outside_training_move_no_other_vector(tmp_path: Path, how: str) -> None:
    sets = views(4, 3)
    before = fused(tmp_path, sets, how).vectors("both")
    changed = {name: np.concatenate([v[:TRAIN], v[TRAIN:] * -50]) for name, v in sets.items()}
    after = fused(tmp_path, changed, how).vectors("both")
    np.testing.assert_array_equal(before[:TRAIN], after[:TRAIN])
    assert not np.allclose(before[TRAIN:], after[TRAIN:])


@pytest.mark.parametrize(("keep", "expected"), [(False, ["both"]), (True, ["set0", "set1", "both"])])
def test_parts_are_kept_on_request(tmp_path: Path, keep: bool, expected: list[str]) -> None:
    files = VectorFiles(tmp_path, views(3, 4))
    fusion = {"both": {"sets": ["set0", "set1"], "how": "cca", "dim": 2, "keep_parts": keep, "dtype": "float16"}}
    result = files.build(vectors={"fusion": fusion})
    assert [one.name for one in result.sets] == expected
    assert result.sets[-1] == VectorSet(name="both", width=2, complete=True)
    assert {path.name for path in (tmp_path / "out/embeddings").iterdir()} == {
        f"{name}{suffix}.npy" for name in expected for suffix in ("", ".present")
    }
    assert result.coverage == {"set0": 1.0, "set1": 1.0, "both": 1.0}
    assert files.stored("both")[0].dtype == np.float16


@pytest.mark.parametrize(
    ("how", "dim", "words"),
    [
        ("concat_pca", 8, r"vectors.fusion.both: dim 8 is more than 7"),
        ("pca_concat", 7, r"vectors.fusion.both: dim 7: the share of set 'set0', 4 is more than 3"),
        ("cca", 4, r"vectors.fusion.both: dim 4 is more than 3"),
    ],
)
def test_a_dim_that_cannot_be_is_named(tmp_path: Path, how: str, dim: int, words: str) -> None:
    with pytest.raises(DataError, match=words):
        fused(tmp_path, views(3, 4), how, dim)


def test_sets_without_a_common_item_are_named(tmp_path: Path) -> None:
    first, second = views(3, 3).values()
    sets = {"a": without(first, slice(0, 100)), "b": without(second, slice(100, TRAIN))}
    with pytest.raises(DataError, match=r"vectors.fusion.both: no item in training has a vector in each of a, b"):
        fused(tmp_path, sets, "cca")


def test_cca_of_a_constant_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="all vectors of set 'b' in training are equal"):
        fused(tmp_path, {"a": views(3)["set0"], "b": np.ones((COUNT, 3))}, "cca")
