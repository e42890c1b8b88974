"""Exact nearest items: by hand, against a literal search, filtered, re-weighted, and blind to items of the future."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.contract.vectors import Neighbours
from features.store.vector_files import ItemVectors
from features.vectors import neighbours as module
from features.vectors.coclicks import Clicks, CoClicks
from features.vectors.neighbours import nearest_neighbours, top_k


def set_of(vectors: Any, present: Any = None) -> ItemVectors:
    """Vectors of items 0, 1, …, on catalogue rows 2, 3, …"""
    vectors_IW = np.concatenate([np.zeros((2, np.shape(vectors)[1])), vectors]).astype(np.float32)
    present_I = np.ones(len(vectors_IW), bool)
    present_I[:2] = False
    if present is not None:
        present_I[2:] = present
    return ItemVectors("text", vectors_IW, present_I, np.zeros(len(vectors_IW), bool))


def near(
    one: ItemVectors,
    trained: Any = None,
    columns: Any = None,
    clicks: CoClicks | None = None,
    **spec: Any,
) -> np.ndarray:
    """Neighbours as item numbers, -1 for none; padding and unknown rows, which have none, are left out."""
    trained_I = np.ones(len(one.present_I), bool)
    if trained is not None:
        trained_I[2:] = trained
    found = nearest_neighbours("near", Neighbours(set="text", **spec), one, trained_I, columns or {}, clicks)
    assert found.dtype == np.int32 and not found[:2].any() and not (found == 1).any()
    return np.where(found == 0, -1, found - 2)[2:]


def literal(scores: np.ndarray, allowed: np.ndarray, k: int) -> list[list[int]]:
    """The slow search: sort all allowed others by score, the lower number first among equals."""
    result = []
    for i, row in enumerate(scores):
        others = sorted((-row[j], j) for j in range(len(row)) if j != i and allowed[i, j])
        result.append([j for _, j in others[:k]] + [-1] * max(0, k - len(others)))
    return result


def test_by_hand() -> None:
    # Angles 0, 10, 90 and 100 degrees, of any length.
    angles = np.deg2rad([0, 10, 90, 100])
    one = set_of(np.stack([np.cos(angles), np.sin(angles)], axis=1) * [[1], [5], [0.1], [3]])
    assert near(one, k=2).tolist() == [[1, 2], [0, 2], [3, 1], [2, 1]]
    assert near(one, k=5)[0].tolist() == [1, 2, 3, -1, -1]


def test_without_a_vector_there_are_no_neighbours() -> None:
    # Item 1 has none of its own (what was filled in counts for nothing), item 2 one of zeros.
    one = set_of([[1, 0], [1, 0], [0, 0], [1, 1]], [True, False, True, True])
    assert near(one, k=2).tolist() == [[3, -1], [-1, -1], [-1, -1], [0, -1]]


def test_a_new_item_has_neighbours_and_is_nobodys() -> None:
    one = set_of([[1, 0], [1, 0.1], [0, 1], [1, 0.04]])
    assert near(one, [True, True, True, False], k=2).tolist() == [[1, 2], [0, 2], [1, 0], [0, 1]]


def test_items_outside_training_change_no_other() -> None:
    draw = np.random.default_rng(0)
    vectors, trained = draw.normal(size=(50, 4)), np.arange(50) < 40
    before = near(set_of(vectors), trained, k=5)
    vectors[40:] = draw.normal(size=(10, 4))
    after = near(set_of(vectors), trained, k=5)
    np.testing.assert_array_equal(before[:40], after[:40])
    assert not np.array_equal(before[40:], after[40:])


@pytest.mark.parametrize("scores_a_block", [1, 70, 1 << 23])
def test_blocks_of_any_size_find_the_same(monkeypatch: pytest.MonkeyPatch, scores_a_block: int) -> None:
    vectors = np.random.default_rng(1).normal(size=(60, 8))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    monkeypatch.setattr(module, "SCORES_A_BLOCK", scores_a_block)
    assert near(set_of(vectors), k=7).tolist() == literal(unit @ unit.T, np.ones((60, 60), bool), 7)


@given(st.lists(st.lists(st.integers(-3, 3), min_size=5, max_size=5), min_size=1, max_size=12), st.integers(1, 6))
def test_of_equal_scores_the_first_wins(rows: list[list[int]], k: int) -> None:
    scores = np.array(rows, np.float32)
    scores[scores == -3] = -np.inf
    items, candidates = np.arange(100, 100 + len(scores)), np.arange(2, 7)
    found = top_k(items, candidates, k, lambda items_B: scores[items_B - 100].copy())
    for row, nearest in zip(scores, found, strict=True):
        expected = [candidates[j] for j in sorted(range(5), key=lambda j: (-row[j], j)) if row[j] > -np.inf][:k]
        assert nearest.tolist() == expected + [0] * (k - len(expected))


def test_same_category() -> None:
    one = set_of([[1, 0], [1, 0.1], [1, 0.2], [1, 0.3], [1, 0.4]])
    # Unknown (1) is no value that items 1 and 4 share.
    columns = {"genre": np.array([0, 1, 2, 1, 3, 2, 1], np.int32)}
    assert near(one, columns=columns, k=2, same="genre").tolist() == [[3, -1], [-1, -1], [-1, -1], [0, -1], [-1, -1]]


def test_same_tags_share_at_least_one() -> None:
    one = set_of([[1, 0], [1, 0.1], [1, 0.2], [1, 0.3]])
    tags = np.array([[0, 0], [1, 0], [2, 3], [3, 0], [4, 2], [1, 0]], np.int32)
    assert near(one, columns={"tags": tags}, k=2, same="tags").tolist() == [[1, 2], [0, -1], [0, -1], [-1, -1]]


@given(st.integers(0, 1000))
def test_filtered_and_reweighted_as_the_formula_says(seed: int) -> None:
    draw = np.random.default_rng(seed)
    count, k = 15, 4
    vectors = draw.normal(size=(count, 3))
    genre = draw.integers(1, 4, count).astype(np.int32)
    tags = draw.integers(1, 6, (count, 2)).astype(np.int32)
    users, items = draw.integers(0, 6, 40).astype(np.int32), draw.integers(0, count, 40).astype(np.int32)
    clicked = np.zeros((6, count))
    clicked[users, items] = 1
    n = clicked.sum(axis=0)
    together = clicked.T @ clicked / np.sqrt(np.maximum(np.outer(n, n), 1))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    columns = {"genre": np.concatenate([[0, 1], genre]), "tags": np.concatenate([[[0, 0], [1, 0]], tags])}
    columns = {name: values.astype(np.int32) for name, values in columns.items()}
    coclicks = CoClicks(Clicks(users, items + np.int32(2)), count + 2)
    same = {
        None: np.ones((count, count), bool),
        "genre": (genre[:, None] == genre) & (genre > 1),
        "tags": ((tags[:, None, :, None] == tags[None, :, None, :]) & (tags > 1)[:, None, :, None]).any(axis=(2, 3)),
    }
    for name, allowed in same.items():
        found = near(set_of(vectors), columns=columns, clicks=coclicks, k=k, same=name, coclicks=0.7)
        scores = unit @ unit.T + 0.7 * together
        # Compared by score: equal ones may stand either way round in another precision.
        for i, expected in enumerate(literal(scores, allowed, k)):
            assert (found[i] >= 0).tolist() == [j >= 0 for j in expected]
            kept = [j for j in found[i] if j >= 0]
            assert allowed[i, kept].all() and i not in kept
            np.testing.assert_allclose(scores[i, kept], scores[i, expected[: len(kept)]], atol=1e-5)


def test_co_clicks_turn_the_order() -> None:
    one = set_of([[1, 0], [1, 0.1], [0, 1]])
    users, items = np.array([1, 1, 2], np.int32), np.array([2, 4, 3], np.int32)
    coclicks = CoClicks(Clicks(users, items), 5)
    # Of item 0: cosine .995 with 1, 0 with 2; item 2 is clicked by the same one user, which counts 1.
    assert near(one, clicks=coclicks, k=1, coclicks=0.5)[0].tolist() == [1]
    assert near(one, clicks=coclicks, k=1, coclicks=1.5)[0].tolist() == [2]
