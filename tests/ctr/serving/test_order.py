"""The order of an answer is that of a stable sort by score."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctr.serving.order import best_first

SCORES = st.one_of(st.floats(width=32, allow_nan=False, allow_infinity=False), st.sampled_from([0.0, -0.0, 0.5, 1.0]))


def stable(score_N: np.ndarray) -> list[int]:
    """Places by score, as Python sorts: what is equal keeps its order."""
    return sorted(range(len(score_N)), key=lambda place: -score_N[place])


@given(st.lists(SCORES, max_size=40))
def test_the_highest_comes_first_and_equal_scores_keep_their_order(scores: list[float]) -> None:
    score_N = np.array(scores, np.float32)
    assert best_first(score_N).tolist() == stable(score_N)


def test_thousands_of_scores_of_which_many_are_equal_are_ordered() -> None:
    score_N = np.random.default_rng(1).integers(0, 500, 5_000).astype(np.float32) / 500
    assert best_first(score_N).tolist() == stable(score_N)


@pytest.mark.parametrize(("top", "places"), [(None, [2, 0, 3, 1]), (2, [2, 0]), (9, [2, 0, 3, 1])])
def test_the_best_so_many_are_given(top: int | None, places: list[int]) -> None:
    assert best_first(np.array([0.5, 0.1, 0.9, 0.5], np.float32), top).tolist() == places


def test_a_column_of_a_table_is_ordered_as_it_stands() -> None:
    scores_NH = np.array([[0.1, 9], [0.3, 8], [0.2, 7]], np.float32)
    assert best_first(scores_NH[:, 0]).tolist() == [1, 2, 0]
