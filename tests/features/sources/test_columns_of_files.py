"""Columns of the files of one table: found by name, of one type, and told where files do not agree."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from features.errors import DataError
from features.sources.tables import expression, read, scan
from tests.features.sources.written import put_local


def test_columns_in_another_order_are_found_by_name(tmp_path: Path) -> None:
    put_local(f"{tmp_path}/a.csv", b"user,item\n1,10\n")
    put_local(f"{tmp_path}/b.csv", b"item,user\n20,2\n")
    assert scan(f"{tmp_path}/*.csv").collect().rows() == [(1, 10), (2, 20)]
    pl.DataFrame({"user": [1], "item": [10]}).write_parquet(tmp_path / "a.parquet")
    pl.DataFrame({"item": [20], "user": [2]}).write_parquet(tmp_path / "b.parquet")
    assert scan(f"{tmp_path}/*.parquet").collect().rows() == [(1, 10), (2, 20)]


def test_text_files_agree_on_a_type(tmp_path: Path) -> None:
    """Whole numbers here and fractions there are fractions; a column without a value is what it is elsewhere."""
    for name, content in (("a", "user,x,y,z\n1,,3,\n"), ("b", "user,x,y,z\n2,7,2.5,\n"), ("c", "user,x,y,z\n3,8,,\n")):
        put_local(f"{tmp_path}/{name}.csv", content.encode())
    found = scan(f"{tmp_path}/*.csv").collect()
    assert found.rows() == [(1, None, 3.0, None), (2, 7, 2.5, None), (3, 8, None, None)]
    assert found.dtypes == [pl.Int64, pl.Int64, pl.Float64, pl.String]


def test_fractions_after_many_whole_numbers(tmp_path: Path) -> None:
    put_local(f"{tmp_path}/a.csv", ("x\n" + "1\n" * 5_000 + "2.5\n").encode())
    assert scan(f"{tmp_path}/a.csv").collect()["x"].to_list()[-2:] == [1.0, 2.5]


def test_a_parquet_column_of_nulls_is_what_it_is_elsewhere(tmp_path: Path) -> None:
    pl.DataFrame({"user": [1], "x": pl.Series([None], dtype=pl.Null)}).write_parquet(tmp_path / "a.parquet")
    pl.DataFrame({"user": [2], "x": ["v"]}).write_parquet(tmp_path / "b.parquet")
    assert scan(f"{tmp_path}/*.parquet").collect().rows() == [(1, None), (2, "v")]


def two_files(folder: Path, kind: str, first: pl.DataFrame, second: pl.DataFrame) -> str:
    """Two files of one kind; returns the glob that names both."""
    for name, frame in (("a", first), ("b", second)):
        write = {"parquet": frame.write_parquet, "arrow": frame.write_ipc, "csv": frame.write_csv}[kind]
        (folder / f"day={name}").mkdir()
        write(folder / f"day={name}/t.{kind}")
    return f"{folder}/*/t.{kind}"


COLUMN_KINDS = pytest.mark.parametrize("kind", ["parquet", "arrow", "csv"])


@COLUMN_KINDS
def test_a_column_that_not_all_files_have_stops_nobody_who_does_not_ask_for_it(tmp_path: Path, kind: str) -> None:
    path = two_files(tmp_path, kind, pl.DataFrame({"u": [1]}), pl.DataFrame({"new": [7], "u": [2]}))
    assert scan(path).collect().rows() == [(1, "a"), (2, "b")]


@COLUMN_KINDS
def test_a_column_of_two_types_stops_nobody_who_does_not_ask_for_it(tmp_path: Path, kind: str) -> None:
    first, second = pl.DataFrame({"u": [1], "x": [5]}), pl.DataFrame({"u": [2], "x": ["five"]})
    assert scan(two_files(tmp_path, kind, first, second)).collect().rows() == [(1, "a"), (2, "b")]


@COLUMN_KINDS
@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ({"u": [1], "x": [1]}, {"u": [1]}, ["day=b/t.", "has no column 'x', which ", "day=a/t.", "Write it in all"]),
        ({"u": [1]}, {"u": [1], "x": [1]}, ["day=a/t.", "has no column 'x', which ", "day=b/t.", "Write it in all"]),
        (
            {"u": [1], "x": [1]},
            {"u": [2], "x": ["one"]},
            ["day=b/t.", "column 'x' holds String, in ", "day=a/t.", "it holds Int64", "Write it with one type"],
        ),
    ],
    ids=["gone", "new", "text for numbers"],
)
@pytest.mark.parametrize("ask", ["column", "expression"])
def test_a_column_that_is_asked_for_names_both_files(
    tmp_path: Path,
    kind: str,
    first: dict[str, list[object]],
    second: dict[str, list[object]],
    words: list[str],
    ask: str,
) -> None:
    path = two_files(tmp_path, kind, pl.DataFrame(first), pl.DataFrame(second))
    with pytest.raises(DataError) as error:
        if ask == "column":
            read(path, ["x"])
        else:
            expression(scan(path), path, "interactions.label", "x >= 4")
    assert all(word in str(error.value) for word in words), error.value


@COLUMN_KINDS
@pytest.mark.parametrize("name", ["*", "^x$", "^.*$"])
def test_a_name_that_is_a_pattern_stops_nobody_who_does_not_ask_for_it(tmp_path: Path, kind: str, name: str) -> None:
    both = pl.DataFrame({"u": [1], name: [5]}), pl.DataFrame({name: [6], "u": [2]})
    assert scan(two_files(tmp_path, kind, *both)).collect().rows() == [(1, "a"), (2, "b")]


@pytest.mark.parametrize(
    "ask", [lambda path: read(path, ["^x$"]), lambda path: expression(scan(path), path, "items.columns.x", "^x$")]
)
def test_a_name_that_is_a_pattern_is_refused_where_it_is_asked_for(tmp_path: Path, ask: Any) -> None:
    path = f"{tmp_path}/t.parquet"
    pl.DataFrame({"u": [1], "^x$": [5]}).write_parquet(path)
    with pytest.raises(DataError) as caught:
        ask(path)
    assert str(caught.value) == (
        f"{path}: the name of column '^x$' would be read as a pattern of column names. Rename it in the export."
    )


def test_a_column_that_sql_would_read_as_a_difference_is_named_as_a_column(tmp_path: Path) -> None:
    path = two_files(tmp_path, "csv", pl.DataFrame({"u": [1]}), pl.DataFrame({"u": [1], "click-through": [1]}))
    with pytest.raises(DataError, match="has no column 'click-through'"):
        expression(scan(path), path, "interactions.label", "click-through")


UTC_MS, UTC_US = pl.Datetime("ms", "UTC"), pl.Datetime("us", "UTC")


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        (pl.Int32, pl.Int64, pl.Int64),
        (pl.UInt8, pl.UInt32, pl.UInt32),
        (pl.UInt32, pl.Int8, pl.Int64),
        (pl.UInt64, pl.Int64, pl.Int128),
        (pl.Int64, pl.Float64, pl.Float64),
        (pl.Int8, pl.Float32, pl.Float64),
        (pl.Float32, pl.Float64, pl.Float64),
        (UTC_MS, UTC_US, UTC_US),
        (pl.List(pl.Int32), pl.List(pl.Int64), pl.List(pl.Int64)),
        (pl.Categorical, pl.String, pl.String),
    ],
    ids=str,
)
@pytest.mark.parametrize("turned", [False, True])
def test_types_that_hold_the_same_meet_in_the_wider(
    tmp_path: Path, kind: str, one: pl.DataType, other: pl.DataType, both: pl.DataType, turned: bool
) -> None:
    special = {pl.List(pl.Int64): [[3], [4]], pl.String: ["x", "y"], UTC_US: [datetime(2026, 1, day) for day in (1, 2)]}
    values: list[Any] = special.get(both, [3, 4])
    kinds = (other, one) if turned else (one, other)
    frames = [pl.DataFrame({"x": [value]}, schema={"x": dtype}) for value, dtype in zip(values, kinds, strict=True)]
    found = scan(two_files(tmp_path, kind, *frames)).collect()["x"]
    assert found.dtype == both
    assert found.to_list() == pl.Series(values).cast(both).to_list()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pl.Int64, pl.String),
        (pl.Int64, pl.Boolean),
        (pl.Datetime("us"), UTC_US),
        (pl.Int64, pl.Datetime("us")),
        (pl.List(pl.Int64), pl.List(pl.String)),
    ],
    ids=str,
)
def test_types_that_mean_different_things_do_not_meet(tmp_path: Path, one: pl.DataType, other: pl.DataType) -> None:
    first, second = pl.DataFrame(schema={"x": one}), pl.DataFrame(schema={"x": other})
    with pytest.raises(DataError, match="column 'x' holds "):
        read(two_files(tmp_path, "parquet", first, second), ["x"])
