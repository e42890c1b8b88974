"""Exact nearest items: by hand, and against a literal search, by cosine and by co-clicks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.vectors import neighbours as module
from features.vectors.coclicks import Clicks, CoClicks
from features.vectors.neighbours import coclicks_to, cosine_to, top_k


def near(vectors: Any, k: int) -> list[list[int]]:
    """The k nearest of items 0, 1, … by cosine, as item numbers, -1 for none. They lie on catalogue rows 2, 3, …"""
    vectors_IW = np.concatenate([np.zeros((2, np.shape(vectors)[1])), vectors]).astype(np.float32)
    rows_I = np.arange(2, len(vectors_IW))
    found = top_k(rows_I, rows_I, k, cosine_to(vectors_IW, rows_I))
    assert found.dtype == np.int32 and not (found == 1).any()
    return np.where(found == 0, -1, found - 2).tolist()


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
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1) * [[1], [5], [0.1], [3]]
    assert near(vectors, k=2) == [[1, 2], [0, 2], [3, 1], [2, 1]]
    assert near(vectors, k=5)[0] == [1, 2, 3, -1, -1]


def test_cosines_of_centred_vectors() -> None:
    # Without the mean (2, 0), items 0 and 2 point the same way, and item 1 the other.
    vectors_IW = np.array([[3, 0], [1, 0], [2.5, 0.1]], np.float32)
    score = cosine_to(vectors_IW, np.array([0, 1, 2]), np.array([2, 0], np.float32))
    assert score(np.array([0]))[0] == pytest.approx([1, -1, 0.5 / np.hypot(0.5, 0.1)])


@pytest.mark.parametrize("scores_a_block", [1, 70, 1 << 23])
def test_blocks_of_any_size_find_the_same(monkeypatch: pytest.MonkeyPatch, scores_a_block: int) -> None:
    vectors = np.random.default_rng(1).normal(size=(60, 8))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    monkeypatch.setattr(module, "SCORES_A_BLOCK", scores_a_block)
    assert near(vectors, k=7) == literal(unit @ unit.T, np.ones((60, 60), bool), 7)


@given(st.lists(st.lists(st.integers(-3, 3), min_size=5, max_size=5), min_size=1, max_size=12), st.integers(1, 6))
def test_of_equal_scores_the_first_wins(rows: list[list[int]], k: int) -> None:
    scores = np.array(rows, np.float32)
    scores[scores == -3] = -np.inf
    items, candidates = np.arange(100, 100 + len(scores)), np.arange(2, 7)
    found = top_k(items, candidates, k, lambda items_B: scores[items_B - 100].copy())
    for row, nearest in zip(scores, found, strict=True):
        expected = [candidates[j] for j in sorted(range(5), key=lambda j: (-row[j], j)) if row[j] > -np.inf][:k]
        assert nearest.tolist() == expected + [0] * (k - len(expected))


@given(st.integers(0, 1000))
def test_by_co_clicks_as_the_formula_says(seed: int) -> None:
    draw = np.random.default_rng(seed)
    count, k = 15, 4
    users, items = draw.integers(0, 6, 40).astype(np.int32), draw.integers(0, count, 40).astype(np.int32)
    clicked = np.zeros((6, count))
    clicked[users, items] = 1
    n = clicked.sum(axis=0)
    scores = clicked.T @ clicked / np.sqrt(np.maximum(np.outer(n, n), 1))
    rows_I = np.arange(2, count + 2)
    found = top_k(rows_I, rows_I, k, coclicks_to(CoClicks(Clicks(users, items + np.int32(2)), count + 2), rows_I)) - 2
    # Compared by score: equal ones may stand either way round in another precision.
    for i, expected in enumerate(literal(scores, scores > 0, k)):
        kept = [j for j in found[i] if j >= 0]
        assert len(kept) == len([j for j in expected if j >= 0]) and i not in kept
        np.testing.assert_allclose(scores[i, kept], scores[i, expected[: len(kept)]], atol=1e-5)
