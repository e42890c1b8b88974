"""Vocabularies: the column way and the one-by-one way agree on every value; rare ones are unknown."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.encoding import vocabulary as vocabularies
from features.encoding.vocabulary import Vocabulary
from features.errors import DataError
from features.sources.keys import canonical

whole = st.lists(st.none() | st.integers(-5, 20) | st.integers(-(2**63), 2**63 - 1), max_size=30)
text = st.lists(st.none() | st.text(max_size=4) | st.sampled_from(["a", "b", "é", "", "1"]), max_size=30)


@pytest.mark.parametrize(("values", "dtype"), [(whole, pl.Int64), (text, pl.String)], ids=["whole", "text"])
def test_encode_is_index_of_each(values: Any, dtype: Any) -> None:
    @given(values, values, st.integers(1, 3), st.none() | st.integers(1, 4))
    def check(train: list[Any], column: list[Any], min_count: int, max_size: int | None) -> None:
        vocabulary = Vocabulary.fit(pl.Series("c", train, dtype=dtype), min_count, max_size)
        index = vocabulary.encode(pl.Series("c", column, dtype=dtype))
        assert index.dtype == np.int32
        assert index.tolist() == [vocabulary.index(value) for value in column]
        for value, i in zip(column, index, strict=True):
            if i >= 2:
                assert vocabulary.value(i) == value
            else:
                assert i == 1 and (value is None or value not in vocabulary.values.to_list())
        assert vocabulary.size == 2 + len(vocabulary.values) and len(vocabulary.values) <= (max_size or 30)

    check()


@pytest.mark.parametrize(("values", "other"), [([1, 2], ["1"]), (["1", "2"], [1])], ids=["whole", "text"])
def test_kinds_refused_one_by_one_are_those_refused_as_a_column(values: list[Any], other: list[Any]) -> None:
    vocabulary = Vocabulary.fit(pl.Series("c", values))
    for value in (*values, None):
        assert vocabulary.is_of_kind(value) and len(vocabulary.encode(pl.Series("c", [value]))) == 1
    assert not vocabulary.is_of_kind(other[0])
    with pytest.raises(DataError, match=r"where .* was learned"):
        vocabulary.encode(pl.Series("c", other))
    nothing = Vocabulary.fit(pl.Series("c", [None, None]))
    assert nothing.is_of_kind(1) and nothing.is_of_kind("1")


def test_by_hand() -> None:
    vocabulary = Vocabulary.fit(pl.Series("c", ["b", "a", "b", None, "c", "c", "a", "c"]), max_size=2)
    # c three times, then a before b by name; stored sorted: a is 2, c is 3.
    assert vocabulary.encode(pl.Series("c", ["a", "b", "c", None, "z"])).tolist() == [2, 1, 3, 1, 1]
    assert Vocabulary.fit(pl.Series("c", [7, 7, 5]), min_count=2).encode(pl.Series([5, 7])).tolist() == [1, 2]


@pytest.mark.parametrize(
    ("train", "given", "index"),
    [
        (pl.Series([1.0, None, 3.0]), 3, 3),  # a csv column with blanks
        (pl.Series([True, False]), True, 3),
        (pl.Series(["x", "y"], dtype=pl.Categorical), "y", 3),
        (pl.Series([3, 4], dtype=pl.UInt8), 4, 3),
    ],
)
def test_other_types_are_brought_to_two(train: pl.Series, given: Any, index: int) -> None:
    vocabulary = Vocabulary.fit(train)
    assert vocabulary.index(given) == index
    assert vocabulary.encode(train.filter(train == given)).tolist() == [index]


def test_a_column_without_any_value_is_unknown_throughout() -> None:
    nothing = pl.Series("c", [None, None])
    for vocabulary in (Vocabulary.fit(nothing), Vocabulary.fit(nothing.cast(pl.String))):
        assert vocabulary.encode(nothing).tolist() == [1, 1] and vocabulary.size == 2
        assert vocabulary.index("x") == 1


@given(whole, whole, st.integers(1, 3), st.none() | st.integers(1, 40))
def test_growing_moves_no_index(first: list[Any], more: list[Any], min_count: int, max_size: int | None) -> None:
    old = Vocabulary.fit(pl.Series("c", first, dtype=pl.Int64), min_count, max_size)
    extended = old.extended(pl.Series("c", more, dtype=pl.Int64), min_count, max_size)
    kept, new = extended.values.to_list()[: len(old.values)], extended.values.to_list()[len(old.values) :]
    assert kept == old.values.to_list() and new == sorted(new)
    times = Counter(value for value in more if value is not None and value not in kept)
    frequent = sorted((value for value in times if times[value] >= min_count), key=lambda one: (-times[one], one))
    assert set(new) == set(frequent if max_size is None else frequent[: max_size - len(kept)])
    column = pl.Series("c", [*first, *more], dtype=pl.Int64)
    assert extended.encode(column).tolist() == [extended.index(value) for value in column]
    if not len(old.values):
        assert new == Vocabulary.fit(pl.Series("c", more, dtype=pl.Int64), min_count, max_size).values.to_list()


def test_growing_by_hand() -> None:
    old = Vocabulary.fit(pl.Series("c", ["m", "x"]))
    extended = old.extended(pl.Series("c", ["b", "z", "x", None, "b", "z", "n"]), min_count=2)
    assert extended.values.to_list() == ["m", "x", "b", "z"]
    counted = old.extended(pl.Series("c", ["b", "z"]), min_count=2, times=pl.Series([1, 2]))
    assert counted.values.to_list() == ["m", "x", "z"]
    assert old.extended(pl.Series("c", [None, None])).values.to_list() == ["m", "x"]
    nothing = Vocabulary.fit(pl.Series("c", [None]))
    assert nothing.extended(pl.Series("c", [7, 5])).values.to_list() == [5, 7]
    with pytest.raises(DataError, match=r"'c': holds Int64 where text was learned"):
        old.extended(pl.Series("c", [7]))


@pytest.mark.parametrize("values", [[7, 10**12, -3, 5 * 10**15], ["m", "x", "b", "é"]], ids=["whole", "text"])
def test_a_sparse_vocabulary_out_of_order_is_searched_by_sorted_values(values: list[Any]) -> None:
    vocabulary = Vocabulary(pl.Series("c", values))
    column = [values[2], None, values[3], values[0], values[2], "absent" if isinstance(values[0], str) else 8]
    assert vocabulary.encode(pl.Series("c", column)).tolist() == [4, 1, 5, 2, 4, 1]
    assert [vocabulary.index(value) for value in column] == [4, 1, 5, 2, 4, 1]


@pytest.mark.parametrize("value", ["\ud800", 2**63, -(2**63) - 1, 1.5, float("nan"), float("inf"), None, "zz"])
def test_what_no_column_can_hold_is_unknown_one_by_one(value: Any) -> None:
    assert Vocabulary(pl.Series("c", [1, 10**12])).index(value) == 1
    assert Vocabulary(pl.Series("c", [1, 2])).index(value) == 1
    assert Vocabulary(pl.Series("c", ["a", "b"])).index(value) == 1


@pytest.mark.parametrize("values", [[1, 2], [7, 10**12], ["a", "b"]], ids=["dense", "sparse", "text"])
@pytest.mark.parametrize("repeats", [1, 40])
def test_many_values_have_the_indices_of_each(values: list[Any], repeats: int) -> None:
    vocabulary = Vocabulary(pl.Series("c", values))
    absent = "\ud800" if isinstance(values[0], str) else 5
    assert vocabulary.indices([*values, absent] * repeats).tolist() == [2, 3, 1] * repeats


@pytest.mark.parametrize("few", [0, 10_000])
@pytest.mark.parametrize(
    ("values", "asked"),
    [
        ([0, 9, 8], [8, None, 5, 0, None, 9]),
        ([0, 10**12, -3], [-3, None, 5, 0, None, 10**12]),
        (["m", "", "é"], ["é", None, "None", "m", None, ""]),
    ],
    ids=["dense", "sparse", "text"],
)
@pytest.mark.parametrize("repeats", [1, 10])
def test_missing_values_among_many_are_unknown(
    values: list[Any], asked: list[Any], repeats: int, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`0` and the empty text are values like others; texts of a large vocabulary are found in another way."""
    monkeypatch.setattr(vocabularies, "FEW", few)
    places = {0: 2, "m": 2, 9: 3, 10**12: 3, "": 3, 8: 4, -3: 4, "é": 4}
    found = Vocabulary(pl.Series("c", values)).indices(asked * repeats)
    assert found.tolist() == [places.get(value, 1) for value in asked] * repeats and found.dtype == np.int64
    nothing = Vocabulary(pl.Series("c", values)).indices([None] * 40)
    assert nothing.tolist() == [1] * 40 and nothing.dtype == np.int64


def test_searching_text_keeps_no_python_object_for_each_value() -> None:
    values = pl.Series("c", [f"{number:06d}" for number in range(20_000)])
    tracemalloc.start()
    vocabulary = Vocabulary(values)
    assert vocabulary.index("019999") == 20_001
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 500_000  # a dictionary of them takes about 2,000,000 bytes


@pytest.mark.parametrize("values", [["b", "", "a\n"], [-3, 0, 2**62]])
def test_saved_and_loaded(values: list[Any], tmp_path: Path) -> None:
    vocabulary = Vocabulary.fit(pl.Series("c", values))
    vocabulary.save(tmp_path / "deep" / "v.arrow")
    loaded = Vocabulary.load(tmp_path / "deep" / "v.arrow")
    assert [loaded.index(value) for value in values] == [vocabulary.index(value) for value in values]
    assert loaded.whole_numbers == vocabulary.whole_numbers == isinstance(values[0], int)


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (pl.Series("c", [1.0, 2.5]), "2.5"),
        (pl.Series("c", [1.0, float("inf")]), "inf"),
        (pl.Series("c", [1.0, 1e300]), "1e300"),
        (pl.Series("c", [1, 2**63], dtype=pl.UInt64), str(2**63)),
        (pl.Series("c", [1.0, 2.0**53]), "below 2^53"),  # as likely 2^53 + 1, which a float rounds to it
        (pl.Series("c", [1.0, 2.0**24], dtype=pl.Float32), "below 2^24"),
        (pl.Series("c", [[1], [2]]), "List"),
    ],
)
def test_what_cannot_be_a_key_is_named(column: pl.Series, words: str) -> None:
    with pytest.raises(DataError, match=r"column 'c'") as caught:
        canonical(column)
    assert words in str(caught.value).replace("+", "")


def test_another_type_than_learned_is_refused() -> None:
    with pytest.raises(DataError, match=r"'c': holds String where whole numbers"):
        Vocabulary.fit(pl.Series("c", [1])).encode(pl.Series("c", ["1"]))


@pytest.mark.parametrize("learned", [[1, 2, 3], [1, 2, 10**12], ["a", "true"]])
@pytest.mark.parametrize(
    "values", [[2**70], [-(2**70), 2], [True, 2], [1, None], [1, "a"], [2.0], ["a", True], ["a", 5], ["\ud800"], [None]]
)
def test_many_values_of_any_type_get_the_index_of_each(learned, values):
    vocabulary = Vocabulary(pl.Series(learned))
    many = values * 40
    assert vocabulary.indices(many).tolist() == [vocabulary.index(value) for value in many]


@pytest.mark.parametrize(
    ("new", "idle", "expected"),
    [
        ([7, 5], [20], [10, 5, 30, 7]),  # 5 takes the place of 20, 7 comes after all
        ([5], [30, 20], [10, 20, 5]),  # the first that is idle gives way, the other stays
        ([5], [99], [10, 20, 30, 5]),  # nobody's place
        ([], [20], [10, 20, 30]),  # nobody needs it
        ([20, 5], [20], [10, 5, 30]),  # what is known is not new
    ],
)
def test_an_idle_value_gives_its_index_to_a_new_one(new: list[int], idle: list[int], expected: list[int]) -> None:
    vocabulary = Vocabulary(pl.Series([10, 20, 30]))
    grown = vocabulary.extended(pl.Series(new, dtype=pl.Int64), idle=pl.Series(idle, dtype=pl.Int64))
    assert grown.values.to_list() == expected
    assert vocabulary.values.to_list() == [10, 20, 30]
