"""Fused sets: against literal PCA, canonical correlation and its generalisation; items that lack a part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.decomposition import PCA

from features.errors import DataError
from features.store.schema import VectorSet
from tests.features.vector_files import VectorFiles

COUNT, TRAIN = 240, 200


def views(*widths: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Sets that show the same two factors with noise of their own, and lie far from the origin."""
    draw = np.random.default_rng(seed)
    factors = draw.normal(size=(COUNT, 2)) * [2, 1]
    return {
        f"set{place}": factors @ draw.normal(size=(2, width)) + 0.5 * draw.normal(size=(COUNT, width)) + 3
        for place, width in enumerate(widths)
    }


def fused(folder: Path, sets: dict[str, np.ndarray], dim: int = 2, **missing: Any) -> VectorFiles:
    files = VectorFiles(folder, sets, np.arange(COUNT) < TRAIN)
    parts = {name: {"normalize": "none", **missing.get(name, {})} for name in sets}
    files.build(parts, {"fusion": {"both": {"sets": list(sets), "dim": dim}}})
    return files


def without(vectors: np.ndarray, items: Any) -> np.ndarray:
    result = vectors.copy()
    result[items] = np.nan
    return result


def test_fused_is_pca_of_all_side_by_side(tmp_path: Path) -> None:
    sets = views(4, 3)
    joined = np.concatenate(list(sets.values()), axis=1)
    expected = PCA(2, svd_solver="full").fit(joined[:TRAIN]).transform(joined)
    np.testing.assert_allclose(fused(tmp_path, sets).vectors("both"), expected, atol=1e-4)


def test_a_missing_part_adds_nothing(tmp_path: Path) -> None:
    """Set alone against literal: what both parts give an item is the sum of what each gives."""
    sets = views(3, 3)
    new = TRAIN  # an item that fitting does not see
    both = fused(tmp_path, sets).vectors("both")[new]
    alone = []
    for lacking in sets:
        changed = {name: without(v, [new]) if name == lacking else v for name, v in sets.items()}
        alone.append(fused(tmp_path, changed).vectors("both")[new])
    together = alone[0] + alone[1]
    np.testing.assert_allclose(together, both, atol=1e-4)
    assert np.abs(alone).max() > 0.1


def test_present_where_a_part_is_and_zero_where_none(tmp_path: Path) -> None:
    first, second = views(3, 3).values()
    files = fused(tmp_path, {"a": without(first, [5, 7]), "b": without(second, [5, 9])})
    assert np.flatnonzero(~np.array(files.present("both"))).tolist() == [5]
    lengths = np.linalg.norm(files.vectors("both"), axis=1)
    assert np.flatnonzero(lengths == 0).tolist() == [5]


def test_a_part_lent_by_neighbours_counts(tmp_path: Path) -> None:
    sets = views(3, 3)
    missing = {"set0": without(sets["set0"], [4]), "set1": sets["set1"]}
    zero = fused(tmp_path, missing).vectors("both")
    lent = fused(tmp_path, missing, set0={"missing": {"by": "set1", "k": 3}}).vectors("both")
    others = np.arange(COUNT) != 4
    np.testing.assert_array_equal(zero[others], lent[others])  # what was lent is not fitted on
    assert not np.allclose(zero[4], lent[4])


def test_items_outside_training_move_no_other_vector(tmp_path: Path) -> None:
    sets = views(4, 3)
    before = fused(tmp_path, sets).vectors("both")
    changed = {name: np.concatenate([v[:TRAIN], v[TRAIN:] * -50]) for name, v in sets.items()}
    after = fused(tmp_path, changed).vectors("both")
    np.testing.assert_array_equal(before[:TRAIN], after[:TRAIN])
    assert not np.allclose(before[TRAIN:], after[TRAIN:])


@pytest.mark.parametrize(("keep", "expected"), [(False, ["both"]), (True, ["set0", "set1", "both"])])
def test_parts_are_kept_on_request(tmp_path: Path, keep: bool, expected: list[str]) -> None:
    files = VectorFiles(tmp_path, views(3, 4))
    fusion = {"both": {"sets": ["set0", "set1"], "dim": 2, "keep_parts": keep, "dtype": "float16"}}
    result = files.build(vectors={"fusion": fusion})
    assert [one.name for one in result.sets] == expected
    assert result.sets[-1] == VectorSet(name="both", width=2, complete=True)
    assert {path.name for path in (tmp_path / "out/embeddings").iterdir()} == {
        f"{name}{suffix}.npy" for name in expected for suffix in ("", ".present")
    }
    assert result.coverage == {"set0": 1.0, "set1": 1.0, "both": 1.0}
    assert files.stored("both")[0].dtype == np.float16


def test_a_dim_that_cannot_be_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"vectors.fusion.both: dim 8 is more than 7"):
        fused(tmp_path, views(3, 4), 8)


def test_sets_without_a_common_item_are_named(tmp_path: Path) -> None:
    first, second = views(3, 3).values()
    sets = {"a": without(first, slice(0, 100)), "b": without(second, slice(100, TRAIN))}
    with pytest.raises(DataError, match=r"vectors.fusion.both: no item in training has a vector in each of a, b"):
        fused(tmp_path, sets)
