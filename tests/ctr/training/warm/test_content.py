"""Rows of new items by least squares; by hand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from ctr.training.warm.content import rows_from_content
from features.store.schema import Field, Schema, VectorSet


class Items(SimpleNamespace):
    """A feature set of items with one vector of width 1 each; NaN where an item has none."""

    def __init__(self, index: list[int], vectors: list[float], half: bool = False) -> None:
        fields = (Field(name="item", kind="categorical", size=max(index) + 1),)
        sets = (VectorSet(name="text", width=1),) if vectors else ()
        self.schema = Schema.model_construct(item=fields, vectors=sets)
        self.items = {"item": np.array(index, np.int32)}
        self.there = ~np.isnan(vectors)
        self.dtype = np.float16 if half else np.float32
        self.values = np.nan_to_num(np.array(vectors))

    def present(self, name: str) -> np.ndarray:
        return self.there

    def stored_vectors(self, name: str) -> tuple[np.ndarray, None]:
        return self.values[:, None].astype(self.dtype), None


# Rows 0 and 1 of the catalogue are padding and unknown. Items 2 and 3 are learned; 4 is new; 5 is new without a vector;
# 6 was seen too seldom for a row of its own.
INDEX = [0, 1, 2, 3, 4, 5, 1]
VECTORS = [np.nan, np.nan, 1.0, 3.0, 4.0, np.nan, 9.0]
TABLE = np.array([[0.0], [0.5], [2.0], [6.0], [7.0], [8.0]])
NEW = np.array([False, False, False, False, True, True])


@pytest.mark.parametrize("half", [False, True])
def test_a_new_item_gets_what_its_vector_says(half: bool) -> None:
    """Vectors 1 and 3 less their mean are -1 and 1, rows 2 and 6 less theirs -2 and 2: V'V = 2, V'R = 4, a ridge of
    0.1 x 2. The new vector 4 lies 2 above the mean: 4 + 2 x 4 / 2.2."""
    found = rows_from_content(Items(INDEX, VECTORS, half), TABLE, NEW)  # type: ignore[arg-type]
    assert found.keys() == {4}
    assert found[4] == pytest.approx([4 + 8 / 2.2])


def test_items_pass_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctr.training.warm.content.ITEMS_AT_ONCE", 1)
    found = rows_from_content(Items(INDEX, VECTORS), TABLE, NEW)  # type: ignore[arg-type]
    assert found[4] == pytest.approx([4 + 8 / 2.2])


@pytest.mark.parametrize(
    ("vectors", "is_new"),
    [
        ([], NEW),  # no vector set at all
        (VECTORS, np.zeros(6, bool)),  # nothing is new
        (
            [np.nan, np.nan, 1.0, np.nan, 4.0, np.nan, 9.0],
            NEW,
        ),  # one learned item has a vector, no line goes through it
        ([np.nan, np.nan, 3.0, 3.0, 4.0, np.nan, 9.0], NEW),  # all learned items have the same one
    ],
)
def test_without_anything_to_learn_from_no_row_is_made(vectors: list[float], is_new: np.ndarray) -> None:
    assert rows_from_content(Items(INDEX, vectors), TABLE, is_new) == {}  # type: ignore[arg-type]
