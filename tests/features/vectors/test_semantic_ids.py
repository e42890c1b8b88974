"""Semantic ids: codes by hand, prefixes and their indices, what the report measures, and what fitting may see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from features.contract.vectors import SemanticIds
from features.errors import DataError
from features.store.schema import Field
from features.vectors.semantic_ids import SemanticCoder, column_names
from tests.features.vector_files import VectorFiles

# Level 1 tells left from right, level 2 low from high, each by centres that are easy to subtract.
BY_HAND = SemanticCoder(
    "c",
    "text",
    np.array([[[-10, 0], [10, 0]], [[0, -1], [0, 1]]], np.float32),
    (np.array([0, 1]), np.array([0, 2, 3])),  # left low, right low and right high were seen in training
)


def clustered(count: int = 400, seed: int = 0) -> np.ndarray:
    """Eight groups, each of four subgroups: what two levels of 8 and 4 codes can tell."""
    draw = np.random.default_rng(seed)
    centres, subcentres = 20 * draw.normal(size=(8, 6)), 3 * draw.normal(size=(4, 6))
    group, subgroup = np.arange(count) % 8, np.arange(count) // 8 % 4
    return centres[group] + subcentres[subgroup] + 0.05 * draw.normal(size=(count, 6))


def fitted(vectors: np.ndarray, **spec: Any) -> SemanticCoder:
    return SemanticCoder.fit("c", SemanticIds(set="text", **spec), vectors.astype(np.float32))


def test_codes_by_hand() -> None:
    vectors = np.array([[-9, -2], [8, -0.5], [11, 3], [-12, 1]], np.float32)
    assert BY_HAND.codes(vectors).tolist() == [[0, 0], [1, 0], [1, 1], [0, 1]]
    columns = BY_HAND.encode(vectors)
    # Prefix (0, 1), left high, was never seen: its first level is known, the whole is not.
    assert columns["c_1"].tolist() == [2, 3, 3, 2] and columns["c_12"].tolist() == [2, 3, 4, 1]
    assert BY_HAND.fields == (
        Field(name="c_1", kind="categorical", size=4),
        Field(name="c_12", kind="categorical", size=5),
    )


def test_a_prefix_is_unknown_from_its_first_unknown_level_on() -> None:
    books = np.array([[[0, 0], [100, 0]], [[0, 0], [0, 10]], [[0, 0], [0, 1]]], np.float32)
    coder = SemanticCoder("c", "text", books, (np.array([0]), np.array([0]), np.array([0, 1])))
    columns = coder.encode(np.array([[0, 0], [0, 1], [0, 11], [100, 1]], np.float32))
    assert columns["c_1"].tolist() == [2, 2, 2, 1]
    assert columns["c_12"].tolist() == [2, 2, 1, 1]
    assert columns["c_123"].tolist() == [2, 3, 1, 1]


def test_column_names() -> None:
    assert column_names("codes", 3) == ("codes_1", "codes_12", "codes_123")
    assert column_names("c", 11)[-1] == "c_1234567891011"


def test_report_by_hand() -> None:
    vectors = np.array([[-10, -1], [-10, -2], [10, 1], [10, 0.5]], np.float32)
    report = BY_HAND.report(vectors, BY_HAND.codes(vectors))
    # Two of each code at both levels; codes (0, 0) and (1, 1) are shared by two items each.
    assert report["perplexity"] == pytest.approx([2, 2]) and report["collisions"] == 1
    # Mean (0, -.375): 4 * 100 + .625^2 + 1.625^2 + 1.375^2 + .875^2 = 405.6875 in all. Level 1 leaves 1 + 4 + 1 + .25,
    # level 2 leaves 0, 1, 0 and .25.
    assert report["reconstruction_error"] == pytest.approx([6.25 / 405.6875, 1.25 / 405.6875])


def test_perplexity_counts_what_is_used() -> None:
    vectors = np.array([[-10, -1], [10, -1], [10, -1], [10, 1]], np.float32)
    report = BY_HAND.report(vectors, BY_HAND.codes(vectors))
    entropy = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75))
    assert report["perplexity"] == pytest.approx([np.exp(entropy)] * 2) and report["collisions"] == 0.5


def test_planted_groups_are_found() -> None:
    vectors = clustered()
    coder = fitted(vectors, levels=2, size=8)
    codes = coder.codes(vectors.astype(np.float32))
    group = np.arange(len(vectors)) % 8
    # One code a group, one group a code.
    assert len({(g, c) for g, c in zip(group, codes[:, 0], strict=True)}) == 8
    report = coder.report(vectors.astype(np.float32), codes)
    first, second = report["reconstruction_error"]  # type: ignore[misc]
    assert first < 0.1 and second < first / 4


def test_the_first_level_is_as_good_as_plain_k_means() -> None:
    vectors = np.random.default_rng(0).normal(size=(2_000, 8)).astype(np.float32)
    coder = fitted(vectors, levels=1, size=32)
    ours = np.square(vectors - coder.codebooks_LKW[0][coder.codes(vectors)[:, 0]]).sum()
    theirs = KMeans(32, n_init=3, random_state=0).fit(vectors).inertia_
    assert ours < 1.03 * theirs


def test_each_level_leaves_less() -> None:
    vectors = np.random.default_rng(0).normal(size=(600, 8)).astype(np.float32)
    coder = fitted(vectors, levels=4, size=8)
    errors = coder.report(vectors, coder.codes(vectors))["reconstruction_error"]
    assert isinstance(errors, list) and 1 > errors[0] > errors[1] > errors[2] > errors[3] > 0


@given(st.integers(0, 200))
def test_codes_are_the_literal_nearest_centres(seed: int) -> None:
    draw = np.random.default_rng(seed)
    books, vectors = draw.normal(size=(3, 5, 4)).astype(np.float32), draw.normal(size=(9, 4)).astype(np.float32)
    found = SemanticCoder("c", "text", books, ()).codes(vectors)
    for vector, codes in zip(vectors, found, strict=True):
        rest = vector.astype(np.float64)
        for book, code in zip(books, codes, strict=True):
            distance = np.square(book - rest).sum(axis=1)
            assert distance[code] <= distance.min() + 1e-5
            rest = rest - book[code]


@given(st.integers(0, 200))
def test_indices_count_the_prefixes_of_training(seed: int) -> None:
    draw = np.random.default_rng(seed)
    trained = draw.normal(size=(40, 3)).astype(np.float32)
    coder = fitted(trained, levels=3, size=4, seed=seed)
    for vectors in (trained, draw.normal(size=(30, 3)).astype(np.float32)):
        codes, columns = coder.codes(vectors), coder.encode(vectors)
        for level, name in enumerate(coder.columns, start=1):
            known = sorted({tuple(row[:level]) for row in coder.codes(trained).tolist()})
            expected = [known.index(p) + 2 if (p := tuple(row[:level])) in known else 1 for row in codes.tolist()]
            assert columns[name].tolist() == expected and coder.fields[level - 1].size == len(known) + 2


def test_the_same_seed_gives_the_same_codes() -> None:
    vectors = np.random.default_rng(0).normal(size=(500, 5))
    one, same, other = (fitted(vectors, size=16, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.codebooks_LKW, same.codebooks_LKW)
    assert not np.array_equal(one.codebooks_LKW, other.codebooks_LKW)


def test_centres_are_fitted_on_a_sample_and_prefixes_on_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("features.vectors.semantic_ids.SAMPLE_A_CODE", 4)
    vectors = np.random.default_rng(0).normal(size=(500, 5))
    coder = fitted(vectors, size=16)
    assert all((column >= 2).all() for column in coder.encode(vectors.astype(np.float32)).values())


def test_saved_and_read_again(tmp_path: Path) -> None:
    vectors = clustered().astype(np.float32)
    coder = fitted(vectors[:300], levels=2, size=8)
    coder.save(tmp_path / "c")
    read = SemanticCoder.load(tmp_path / "c")
    assert (read.name, read.set, read.fields) == (coder.name, coder.set, coder.fields)
    assert read.codebooks_LKW.dtype == np.float32
    for name, column in coder.encode(vectors).items():
        np.testing.assert_array_equal(read.encode(vectors)[name], column)


def test_a_coder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none: no coder of semantic ids: .*Build the feature set again"):
        SemanticCoder.load(tmp_path / "none")
    BY_HAND.save(tmp_path)
    (tmp_path / "codebooks.npy").write_bytes(b"torn")
    with pytest.raises(DataError, match="no coder of semantic ids"):
        SemanticCoder.load(tmp_path)


def test_a_coder_of_another_format_is_refused(tmp_path: Path) -> None:
    BY_HAND.save(tmp_path)
    file = tmp_path / "coder.json"
    file.write_text(file.read_text().replace('"format": 1', '"format": 9'))
    with pytest.raises(
        DataError, match=r"coder\.json: is of format 9, .* reads format 1\. Build the feature set again"
    ):
        SemanticCoder.load(tmp_path)


def test_more_codes_than_vectors_are_refused() -> None:
    with pytest.raises(DataError, match=r"semantic_ids.c: size 16 is more than the 15 items in training with a vector"):
        fitted(np.ones((15, 2)), size=16)


def test_equal_vectors_leave_codes_unused() -> None:
    vectors = np.repeat([[1, 0], [0, 1]], 20, axis=0).astype(np.float32)
    coder = fitted(vectors, levels=2, size=4)
    report = coder.report(vectors, coder.codes(vectors))
    assert report["perplexity"] == pytest.approx([2, 1]) and report["collisions"] == 1
    assert report["reconstruction_error"] == pytest.approx([0, 0], abs=1e-9)


def test_items_outside_training_move_no_code_but_their_own(tmp_path: Path) -> None:
    vectors = clustered()
    trained = np.arange(400) < 300
    spec = {"semantic_ids": {"c": {"set": "text", "levels": 2, "size": 8}}}
    files = VectorFiles(tmp_path, {"text": vectors}, trained)
    before = files.build(vectors=spec)
    files.sets["text"][300:] *= -3
    after = files.build(vectors=spec)
    assert before.item_fields == after.item_fields
    for name, column in before.item_columns.items():
        np.testing.assert_array_equal(column[:302], after.item_columns[name][:302])
        assert not np.array_equal(column[302:], after.item_columns[name][302:])


def test_a_built_column_is_what_the_saved_coder_says(tmp_path: Path) -> None:
    """A new item gets its codes later from the same files, by its vector in the set's own space."""
    vectors = clustered()
    vectors[7] = np.nan
    files = VectorFiles(tmp_path, {"text": vectors}, np.arange(400) < 300)
    embeddings = {"text": {"normalize": "centre", "reduce": {"method": "pca", "dim": 3}}}
    result = files.build(embeddings, {"semantic_ids": {"c": {"set": "text", "levels": 2, "size": 8}}})
    later = SemanticCoder.load(tmp_path / "out/semantic_ids/c").encode(files.vectors("text"))
    has = np.arange(400) != 7
    for name, column in result.item_columns.items():
        np.testing.assert_array_equal(column[2:][has], later[name][has])
        assert column[9] == 1
