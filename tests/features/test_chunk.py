"""A chunk taken apart into columns and put together is the same chunk, whatever its columns are called."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.chunk import Chunk
from tests.features.chunks import chunk_of

NAMES = st.lists(st.sampled_from(["user", "is_row", "a/b", "/", "", "context", "events/x", "_event"]), unique=True)
LISTS = pa.array([[1, 2], [], [3]], pa.large_list(pa.int32()))


def full_chunk(names: list[str]) -> Chunk:
    columns = {name: np.arange(3.0) + place for place, name in enumerate(names)}
    return replace(chunk_of([10, 20, 30]), context=columns, events=columns, weight=np.ones(3), given=LISTS)


def content(chunk: Chunk) -> dict[str, Any]:
    """Every field, arrays as lists."""
    found: dict[str, Any] = {}
    for each in fields(chunk):
        value = getattr(chunk, each.name)
        found[each.name] = {k: v.tolist() for k, v in value.items()} if isinstance(value, dict) else plain(value)
    return found


def plain(values: Any) -> Any:
    return values if values is None else values.tolist()


@given(NAMES)
def test_columns_are_lossless(names: list[str]) -> None:
    chunk = full_chunk(names)
    assert content(Chunk.from_columns(chunk.columns())) == content(chunk)


@pytest.mark.parametrize("index", [np.array([2, 0]), np.array([True, False, True])], ids=["places", "mask"])
def test_take_takes_every_column(index: np.ndarray) -> None:
    taken = full_chunk(["a"]).take(index)
    order = [0, 2] if index.dtype == bool else [2, 0]
    assert taken.rows == 2
    assert taken.time.tolist() == [[10, 20, 30][place] for place in order]
    assert taken.events["a"].tolist() == order
    assert taken.given is not None and taken.given.to_pylist() == [[[1, 2], [], [3]][place] for place in order]


def test_concat_puts_rows_one_after_the_other() -> None:
    chunk = full_chunk(["a"])
    joined = Chunk.concat([chunk, chunk.take(np.array([1]))])
    assert joined.time.tolist() == [10, 20, 30, 20]
    assert joined.given is not None and joined.given.to_pylist() == [[1, 2], [], [3], []]
    assert joined.context["a"].tolist() == [0, 1, 2, 1] and joined.file is None


def test_blank_rows_say_nothing_and_keep_the_types() -> None:
    chunk = replace(
        full_chunk([]), context={"tags": np.ones((3, 2), np.int32)}, labels={"like": np.ones(3, np.float32)}
    )
    blank = chunk.blank(2)
    assert blank.rows == 2 and blank.context["tags"].tolist() == [[0, 0], [0, 0]]
    assert blank.labels["like"].dtype == np.float32 and np.isnan(blank.labels["like"]).all()
    assert blank.is_event.tolist() == [False, False] and blank.given is not None
    assert blank.given.to_pylist() == [[], []]


def test_a_field_cannot_be_set() -> None:
    with pytest.raises(AttributeError):
        chunk_of([1]).user = np.zeros(1)  # type: ignore[misc]
