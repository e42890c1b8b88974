"""What every column encoder promises: a column and its single values agree bit by bit, and so after write and read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.contract.columns import (
    Buckets,
    Categorical,
    ColumnSpec,
    DatePart,
    Gap,
    Hashed,
    Numeric,
    Residual,
    Tags,
)
from features.encoding.base import ColumnEncoder
from features.encoding.registry import ENCODERS, encode_value, fit_column
from features.encoding.vocabulary import Vocabulary
from features.errors import ConfigError, DataError

INT64 = st.integers(-(2**63), 2**63 - 1)
WORD = st.text(max_size=4) | st.sampled_from(["a", "b", "é", "", "1", "true", "日本"])
WHOLE = st.integers(-3, 12) | INT64
FLOAT = st.floats(allow_nan=True, allow_infinity=True) | st.floats(-10, 10)
INSTANT = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30))
IN_TOKYO = INSTANT.map(lambda time: time.replace(tzinfo=timezone(timedelta(hours=9))))


@dataclass(frozen=True)
class Case:
    """A declared column: training values, and which values may follow, in a polars type."""

    spec: ColumnSpec
    train: list[Any]
    values: st.SearchStrategy[Any]
    dtype: Any

    def column(self, values: list[Any]) -> pl.Series:
        return pl.Series("c", values, dtype=self.dtype)

    @property
    def encoder(self) -> ColumnEncoder:
        return fit_column(self.column(self.train), self.spec, "log.parquet")


CATEGORICAL = Categorical(type="categorical")
HASHED = Hashed(type="hashed", buckets=1000)
QUARTERS = Buckets(type="buckets", count=4)
PRICES = [1.0, 2.0, 6.0, 8.0, 8.0, 9.5, None]
HOUR, WEEK = DatePart(type="date", part="hour"), DatePart(type="date", part="week", time_unit="ms")

CASES = {
    "categorical text": Case(CATEGORICAL, ["a", "b", "é", "", None], WORD, pl.String),
    "categorical, sparse whole numbers": Case(CATEGORICAL, [1, 5, -(2**63), 2**63 - 1], WHOLE, pl.Int64),
    "categorical, dense whole numbers": Case(CATEGORICAL, [1, 5, 3, None], WHOLE, pl.Int64),
    "categorical, whole floats": Case(CATEGORICAL, [1.0, 5.0, None], st.integers(-3, 9).map(float), pl.Float64),
    "categorical, booleans": Case(CATEGORICAL, [True, None], st.booleans(), pl.Boolean),
    "hashed text": Case(HASHED, ["a"], WORD, pl.String),
    "hashed whole numbers": Case(HASHED, [1], WHOLE, pl.Int64),
    "hashed whole floats": Case(HASHED, [1.0], st.integers(1 - 2**53, 2**53 - 1).map(float), pl.Float64),
    "hashed booleans": Case(HASHED, [True], st.booleans(), pl.Boolean),
    "tags": Case(
        Tags(type="tags", max_len=2), [["a", "b"], ["é", None], None], st.lists(WORD | st.none()), pl.List(pl.String)
    ),
    "tags, whole numbers": Case(Tags(type="tags", max_len=3), [[1, 5], [3]], st.lists(WHOLE), pl.List(pl.Int64)),
    "numeric": Case(Numeric(type="numeric"), PRICES, FLOAT, pl.Float64),
    "numeric, clipped logarithm": Case(
        Numeric(type="numeric", clip=(-2, 7), transform="log1p"), PRICES, FLOAT, pl.Float64
    ),
    "numeric, raw": Case(Numeric(type="numeric", transform="log1p", scale="none"), PRICES, FLOAT, pl.Float64),
    "numeric, whole": Case(Numeric(type="numeric"), [1, 2, 9], WHOLE, pl.Int64),
    "numeric, unsigned": Case(Numeric(type="numeric"), [1, 2, 9], st.integers(0, 2**64 - 1), pl.UInt64),
    "numeric, booleans": Case(Numeric(type="numeric"), [True, False, False], st.booleans(), pl.Boolean),
    "residual": Case(Residual(type="residual", counter="ctr"), PRICES, FLOAT, pl.Float64),
    "quantile buckets": Case(QUARTERS, PRICES, FLOAT | st.sampled_from(PRICES), pl.Float64),
    "given buckets": Case(Buckets(type="buckets", edges=(-1, 0, 5)), [], FLOAT | st.integers(-3, 7), pl.Float64),
    "buckets of whole numbers": Case(QUARTERS, [1, 5, 9, 2**60], WHOLE, pl.Int64),
    "gap": Case(Gap(type="gap"), [], FLOAT | st.floats(0, 1e8), pl.Float64),
    "hour of seconds": Case(HOUR, [0], WHOLE | st.integers(-(10**10), 10**10), pl.Int64),
    "week of milliseconds": Case(WEEK, [0], WHOLE | st.integers(-(10**13), 10**13), pl.Int64),
    "hour, unsigned": Case(HOUR, [0], st.integers(0, 2**64 - 1), pl.UInt64),
    "hour of times": Case(HOUR, [], INSTANT, pl.Datetime("us")),
    "week of times": Case(WEEK, [], INSTANT, pl.Datetime("us")),
    "hour of times with a zone": Case(HOUR, [], IN_TOKYO, pl.Datetime("us", "Asia/Tokyo")),
    "week of dates": Case(WEEK, [], st.dates(), pl.Date),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))


def online(value: Any) -> Any:
    """A value of a column as a request has it: times as ISO text."""
    return value.isoformat() if isinstance(value, date) else value


def test_every_declared_type_is_among_the_cases() -> None:
    assert {case.spec.type for case in CASES.values()} == set(ENCODERS)


@every_case
def test_a_column_is_its_values(case: Case) -> None:
    encoder = case.encoder

    @given(st.lists(case.values | st.none(), max_size=12))
    def check(values: list[Any]) -> None:
        encoded = encoder.encode(case.column(values))
        one_by_one = [encode_value("here", encoder, online(value)) for value in values]
        for row, one in zip(encoded, one_by_one, strict=True):
            assert one.shape == (1, *encoded.shape[1:])
            np.testing.assert_array_equal(row, one[0])
        field = encoder.field("c")
        if field.kind == "numeric":
            assert encoded.dtype == np.float32 == encoder.encode_one(None).dtype and not np.isinf(encoded).any()
        else:
            assert encoded.dtype == np.int32 and encoder.encode_one(None).dtype == np.int64
            assert ((encoded >= (0 if field.kind == "tags" else 1)) & (encoded < field.size)).all()

    check()


@every_case
def test_missing_is_unknown_and_never_padding(case: Case) -> None:
    encoder = case.encoder
    missing = encoder.encode(case.column([None]))
    np.testing.assert_array_equal(missing, encoder.special_row(1))
    if case.spec.type != "tags":  # a column of lists without any is still one of lists
        np.testing.assert_array_equal(missing, encoder.encode(pl.Series("c", [None])))
    assert encoder.raw_value(missing[0]) is None
    assert encoder.encode(case.column([])).shape == (0, *missing.shape[1:])
    if encoder.field("c").kind != "numeric":
        assert encoder.special_row(0).ravel()[0] == 0 and missing.ravel()[0] == 1


@every_case
def test_written_and_read_it_is_the_same(case: Case) -> None:
    encoder = case.encoder
    stored: dict[str, Vocabulary] = {}

    def keep(vocabulary: Vocabulary) -> str:
        stored["file"] = vocabulary
        return "file"

    written = json.loads(json.dumps(encoder.to_json(keep)))
    read = ENCODERS[encoder.kind].from_json(written, stored.__getitem__)
    assert read.to_json(keep) == encoder.to_json(keep) and read.field("c") == encoder.field("c")

    @settings(max_examples=20)
    @given(st.lists(case.values | st.none(), max_size=8))
    def check(values: list[Any]) -> None:
        column = case.column(values)
        np.testing.assert_array_equal(read.encode(column), encoder.encode(column))

    check()


@every_case
def test_a_raw_value_encodes_to_where_it_came_from(case: Case) -> None:
    encoder = case.encoder

    @given(case.values)
    def check(value: Any) -> None:
        encoded = encoder.encode(case.column([value]))
        again = encode_value("here", encoder, encoder.raw_value(encoded[0]))
        if encoder.field("c").kind == "numeric":
            # Through float32 and back: seven digits, of which a clip or a logarithm may hide the last.
            np.testing.assert_allclose(again, encoded, rtol=1e-5, atol=1e-5)
        else:
            np.testing.assert_array_equal(again, encoded)

    check()


@every_case
def test_extended_by_what_it_knows_it_is_unchanged(case: Case) -> None:
    column, encoder = case.column(case.train), case.encoder
    extended = fit_column(column, case.spec, "log.parquet", prior=encoder)
    assert extended.field("c") == encoder.field("c")
    np.testing.assert_array_equal(extended.encode(column), encoder.encode(column))


@pytest.mark.parametrize(
    ("column", "spec", "words"),
    [
        (pl.Series("c", ["x"]), Numeric(type="numeric"), "declared a number but is String, e.g. 'x'"),
        (pl.Series("c", ["x"]), QUARTERS, "declared a number but is String, e.g. 'x'"),
        (pl.Series("c", ["x"]), Buckets(type="buckets", edges=(1.0,)), "declared a number but is String, e.g. 'x'"),
        (pl.Series("c", ["x"]), Tags(type="tags"), "declared `tags`"),
        (pl.Series("c", [3]), Tags(type="tags", separator="|"), "declared `tags`"),
        (pl.Series("c", [0.5]), CATEGORICAL, "values, e.g. 0.5, are not whole numbers"),
        (pl.Series("c", [1.5]), HOUR, "declared `date` but holds Float64, expected times or whole numbers"),
        (pl.Series("c", ["2026-01-01"]), HOUR, "declared `date` but holds String"),
        (pl.Series("c", [1e308, -1e308, 0]), Numeric(type="numeric"), "numbers as large as 1e+308 have no mean"),
    ],
)
def test_a_wrong_column_names_file_and_column(column: pl.Series, spec: Any, words: str) -> None:
    with pytest.raises(DataError) as caught:
        fit_column(column, spec, "items.csv")
    assert str(caught.value).startswith("items.csv: column 'c'") and words in str(caught.value)


@pytest.mark.parametrize(
    ("case", "value"),
    [
        ("categorical text", 3),
        ("categorical, dense whole numbers", "3"),
        ("tags", ["a", 1]),
        ("hashed text", 2**63),
        ("hashed text", 2.0**53),
        ("hashed text", -(2.0**63)),
        ("hashed text", 0.5),
        ("hashed text", float("nan")),
        ("hashed text", float("inf")),
        ("hour of seconds", "yesterday"),
        ("hour of seconds", 0.5),
        ("hour of seconds", True),
    ],
)
def test_an_online_value_that_no_column_could_hold(case: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=r"^context\.c: "):
        encode_value("context.c", CASES[case].encoder, value)


@pytest.mark.parametrize(("case", "value"), [("hashed text", "\ud800"), ("categorical text", "\ud800")])
def test_text_that_utf8_cannot_write_is_no_crash(case: str, value: str) -> None:
    assert CASES[case].encoder.encode_one(value)[0] >= 1


def test_the_greatest_number_comes_back_as_one() -> None:
    """A golden request is written in raw values, and a request takes no infinity."""
    encoder = CASES["numeric, raw"].encoder
    encoded = encoder.encode(pl.Series("c", [1.797641780514629e308]))
    assert np.isfinite(encoder.raw_value(encoded[0])) and encoder.encode_one(encoder.raw_value(encoded[0])) == encoded


def test_huge_online_numbers_are_unknown() -> None:
    assert CASES["hour of seconds"].encoder.encode_one(2**70).tolist() == [1]
    assert CASES["categorical, dense whole numbers"].encoder.encode_one(-(2**70)).tolist() == [1]
    utc = datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)
    assert CASES["hour of times"].encoder.encode_one(utc.isoformat()).tolist() == [25]
