"""Column encoders: the offline column and the online value give the same numbers; hand-computed fits."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.columns import fit_column
from features.columns_category import CategoricalEncoder, TagsEncoder
from features.columns_number import NumericEncoder
from features.contract_columns import Categorical, Numeric, Tags
from features.errors import DataError

word = st.sampled_from(["a", "b", "c", "d", "new"]) | st.none()
number = st.none() | st.floats(allow_nan=True, allow_infinity=True) | st.floats(-10, 10)


@given(st.lists(word, max_size=12), st.lists(word, max_size=12), st.integers(1, 2))
def test_categorical_column_is_its_values(train: list[Any], column: list[Any], min_count: int) -> None:
    spec = Categorical(type="categorical", min_count=min_count)
    encoder = CategoricalEncoder.fit(pl.Series("c", train, dtype=pl.String), spec)
    one_by_one = [encoder.encode_one(value) for value in column]
    assert encoder.encode(pl.Series("c", column, dtype=pl.String)).tolist() == [int(one[0]) for one in one_by_one]


@given(st.lists(st.lists(word, max_size=5) | st.none(), max_size=10), st.integers(1, 4))
def test_tags_column_is_its_lists(column: list[Any], max_len: int) -> None:
    encoder = TagsEncoder.fit(pl.Series("c", [["a", "b"], ["c", None], None]), Tags(type="tags", max_len=max_len))
    encoded = encoder.encode(pl.Series("c", column, dtype=pl.List(pl.String)))
    assert encoded.shape == (len(column), max_len) and encoded.dtype == np.int32
    for row, value in zip(encoded, column, strict=True):
        assert row.tolist() == encoder.encode_one(value)[0].tolist()


@given(st.lists(number, max_size=12), st.sampled_from(["none", "log1p"]))
def test_numeric_column_is_its_values(column: list[Any], transform: str) -> None:
    encoder = NumericEncoder.fit(pl.Series("c", [1.0, 2.0, 6.0]), Numeric(type="numeric", transform=transform))
    encoded = encoder.encode(pl.Series("c", column, dtype=pl.Float64))
    assert encoded.dtype == np.float32 and not np.isinf(encoded).any()
    one_by_one = [encoder.encode_one(value)[0] for value in column]
    np.testing.assert_array_equal(encoded, np.array(one_by_one, np.float32))


def test_tags_by_hand() -> None:
    encoder = TagsEncoder.fit(pl.Series("c", [["b", "a"], ["c"]]), Tags(type="tags", max_len=2))
    column = pl.Series("c", [["c", "x", "a", "b"], ["x"], [], None, ["b"]])
    # a 2, b 3, c 4: unknown tags make room for known ones; nothing known is [1, 0].
    assert encoder.encode(column).tolist() == [[4, 2], [1, 0], [1, 0], [1, 0], [3, 0]]
    fixed = pl.Series("c", [["a", "c"]], dtype=pl.Array(pl.String, 2))
    assert encoder.encode(fixed).tolist() == [[2, 4]]
    assert encoder.blank(0).tolist() == [[0, 0]] and encoder.blank(1).tolist() == [[1, 0]]


def test_numeric_by_hand() -> None:
    encoder = NumericEncoder.fit(pl.Series("c", [1, 3, None, 5]), Numeric(type="numeric"))
    # mean 3, deviation sqrt((4 + 0 + 4) / 3)
    deviation = math.sqrt(8 / 3)
    assert (encoder.mean, encoder.deviation) == pytest.approx((3.0, deviation))
    expected = [-2 / deviation, np.nan, 1 / deviation]
    np.testing.assert_allclose(encoder.encode(pl.Series("c", [1, None, 4])), expected, rtol=1e-6)
    logs = NumericEncoder.fit(pl.Series("c", [0.0, math.e - 1]), Numeric(type="numeric", transform="log1p"))
    # logs 0 and 1: mean ½, deviation ½; below or at -1 there is no logarithm.
    np.testing.assert_allclose(logs.encode(pl.Series("c", [0.0, math.e - 1, -1.0, -2.0])), [-1, 1, np.nan, np.nan])


@pytest.mark.parametrize("values", [[4.0] * 3, [0.1] * 3, [1e9 + 0.1] * 7, [0.1], [None, None]])
def test_a_constant_column_has_deviation_one(values: list[Any]) -> None:
    """Also where rounding gives a mean that no value equals: 0.1 three times has a computed deviation of 1e-17."""
    encoder = NumericEncoder.fit(pl.Series("c", values, dtype=pl.Float64), Numeric(type="numeric"))
    assert encoder.deviation == 1.0
    assert abs(encoder.encode_one((values[0] or 0.0) + 1)[0] - 1) < 1e-3 + abs(encoder.mean) * 1e-12


@pytest.mark.parametrize(
    ("column", "spec", "words"),
    [
        (pl.Series("c", ["x"]), Numeric(type="numeric"), "declared a number but is String, e.g. 'x'"),
        (pl.Series("c", ["x"]), Tags(type="tags"), "declared `tags`"),
        (pl.Series("c", [0.5]), Categorical(type="categorical"), "values, e.g. 0.5, are not whole numbers"),
    ],
)
def test_a_wrong_type_names_file_and_column(column: pl.Series, spec: Any, words: str) -> None:
    with pytest.raises(DataError) as caught:
        fit_column(column, spec, "items.csv")
    assert str(caught.value).startswith("items.csv: column 'c'") and words in str(caught.value)
