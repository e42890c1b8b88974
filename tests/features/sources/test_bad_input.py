"""Data that breaks its contract: each kind is refused with file, column, example and way out; nothing stays behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from features.build.build import build_feature_set
from features.errors import ConfigError, DataError, QuadRankError
from tests.features.raw import ROWS, START, Tables, raw_log

Change = Callable[[Tables], object]
BIG = 2**63 + 5
WRAPS = 2**64 // 10**6 - START + 1  # seconds that, as µs in 64 bits, would pass for 1970


def put(table: str, **columns: Any) -> Change:
    """Set columns of a table; an expression, or a value for its first row (the others keep theirs)."""

    def change(tables: Tables) -> None:
        first = pl.int_range(pl.len()) == 0
        for name, given in columns.items():
            new = given if isinstance(given, pl.Expr) else pl.when(first).then(given).otherwise(name)
            tables[table] = tables[table].with_columns(new.alias(name))

    return change


def twice(table: str) -> Change:
    """Repeat the first row of a table."""

    def change(tables: Tables) -> None:
        tables[table] = pl.concat([tables[table], tables[table][:1]])

    return change


def vectors(edit: Callable[[list[Any]], object]) -> Change:
    """Alter the list of vectors."""

    def change(tables: Tables) -> None:
        values = tables["text"]["vector"].to_list()
        edit(values)
        tables["text"] = tables["text"].with_columns(vector=pl.Series(values, dtype=pl.List(pl.Float64)))

    return change


def untrained(tables: Tables) -> None:
    """A fractional genre, of an item that the training window does not know."""
    genre = pl.when(pl.col("item_id") == 101).then(0.5).otherwise(1.0)
    tables["items"] = tables["items"].with_columns(genre=genre)
    tables["log"] = tables["log"].with_columns(item_id=pl.col("item_id").clip(102))


def no_rows(table: str) -> Change:
    """The table with its columns and no row."""

    def change(tables: Tables) -> None:
        tables[table] = tables[table][:0]

    return change


def pieces(tables: Tables) -> None:
    tables["log"] = tables["log"][:0]


def log(**interactions: Any) -> dict[str, Any]:
    return {"interactions": interactions}


def text(**embedding: Any) -> dict[str, Any]:
    return {"embeddings": {"text": embedding}}


TEXT_ID = pl.format("i{}", "item_id")
NUMBERED = pl.col("item_id") + 1_000_000
BAD_DATA: list[tuple[str, Change | None, dict[str, Any], list[str]]] = [
    ("missing file", None, log(path="logs.parquet"), ["logs.parquet: no such file", "holds", "log.parquet"]),
    ("missing folder", None, log(path="nowhere/log.parquet"), ["nowhere does not exist", "--root"]),
    ("missing table", None, {"items": {"path": "item.parquet"}}, ["item.parquet: no such file", "items.parquet"]),
    ("missing vectors", None, text(path="txt.parquet"), ["txt.parquet: no such file"]),
    ("missing column", None, log(user="user"), ["log.parquet: no column 'user'. Did you mean 'user_id'?"]),
    ("missing context", None, log(context={"hours": {"type": "categorical"}}), ["'hours'. Did you mean 'hour'?"]),
    ("missing event column", None, {"history": {"columns": {"ratng": {"type": "categorical"}}}}, ["'rating'"]),
    ("missing item column", put("items", genres=pl.lit(1)), {"items": {"columns": {"gnre": {"type": "categorical"}}}},
     ["items.parquet: no column 'gnre'. Did you mean 'genre'?"]),
    ("missing vector column", None, text(vector="vec"), ["text.parquet: no column 'vec'. Did you mean 'vector'?"]),
    ("time of text", put("log", time=pl.col("time").cast(pl.String)), {}, ["time column 'time' holds String"]),
    ("time of floats", put("log", time=pl.col("time") / 2), {}, ["time column 'time' holds Float64"]),
    ("time in another unit", put("log", time=pl.col("time") * 1_000), {}, ["'time'", "read in 's'", "time_unit"]),
    ("time that overflows", put("log", time=pl.col("time") * 1_000_000), {}, ["'time'", "read in 's'", "time_unit"]),
    ("time that wraps round", put("log", time=pl.col("time") + WRAPS), {}, ["'time'", "read in 's'", "time_unit"]),
    ("time beyond 63 bits", put("log", time=pl.lit(BIG, pl.UInt64)), {},
     ["'time'", f"{ROWS} of {ROWS} rows lie outside"]),
    ("timestamp that no calendar holds", put("log", time=pl.lit(2**61).cast(pl.Datetime("ms"))), {},
     ["'time'", f"{ROWS} of {ROWS} rows lie outside", "e.g. a time beyond the years 1 to 9999 in row 0"]),
    ("date that no calendar holds", put("log", time=pl.lit(2**31 - 1, pl.Int32).cast(pl.Date)), {},
     ["'time'", f"{ROWS} of {ROWS} rows lie outside", "e.g. a time beyond the years 1 to 9999 in row 0"]),
    ("fractional user", put("log", user_id=pl.col("user_id") + 0.5), {}, ["'user_id' holds Float64", "Cast it"]),
    ("user too large", put("log", user_id=pl.lit(BIG, pl.UInt64)), {}, ["log.parquet", "'user_id'", str(BIG), "2^63"]),
    ("item of lists", put("log", item_id=pl.concat_list("item_id")), {}, ["'item_id': type List", "integers or text"]),
    ("null user", put("log", user_id=None), {}, [f"'user_id': 1 of {ROWS} rows are null", "Remove or fill"]),
    ("null item", put("log", item_id=None), {}, [f"'item_id': 1 of {ROWS} rows are null"]),
    ("null time", put("log", time=None), {}, [f"'time': 1 of {ROWS} rows are null"]),
    ("null label", put("log", rating=None), {}, [f"'rating >= 4': 1 of {ROWS} rows are null"]),
    ("label of five stars", None, log(label="rating"), ["'rating'", "neither 0 nor 1, e.g. ", "`rating >= 4`"]),
    ("label that is NaN", put("log", rating=pl.lit(float("nan"))), log(label="rating"), ["neither 0 nor 1, e.g. nan"]),
    ("label of text", None, log(label="CAST(rating AS VARCHAR)"), ["VARCHAR)' is String", "`rating >= 4`"]),
    ("label of one word", None, log(label="'yes'"), ["interactions.label \"'yes'\" is one value", "`rating >= 4`"]),
    ("label of the whole log", None, log(label="MAX(rating) >= 4"), ["'MAX(rating) >= 4' is one value", "one a row"]),
    ("label that is NaN carried along", put("log", rating=pl.lit(float("nan"))),
     {**log(label="rating"), "history": {"columns": {"label": {"type": "categorical"}}}}, ["neither 0 nor 1", "nan"]),
    ("label unparsable", None, log(label="rating >="), ["interactions.label 'rating >=' is no SQL expression"]),
    ("label of no column", None, log(label="ratings >= 4"), ["no column 'ratings'. Did you mean 'rating'?"]),
    ("label of wrong types", put("log", rating=pl.lit("good")), {}, ["interactions.label 'rating >= 4' cannot be"]),
    ("events unparsable", None, {"history": {"events": "(rating"}}, ["history.events '(rating' is no SQL expression"]),
    ("events of numbers", None, {"history": {"events": "rating - 1"}}, ["'rating - 1' is Int64", "`label == 1`"]),
    ("events of text", put("log", c=pl.lit("x")), {"history": {"events": "c"}}, ["history.events 'c' is String"]),
    ("events of the whole log", None, {"history": {"events": "1 = 1"}}, ["history.events '1 = 1' is one value"]),
    ("weight below zero", put("log", w=pl.when(pl.int_range(ROWS) < 2).then(-0.5).otherwise(1.0)), log(weight="w"),
     ["weight column 'w'", f"2 of {ROWS} rows are negative or not finite, e.g. -0.5", "weight 0"]),
    ("weight infinite", put("log", w=pl.lit(float("inf"))), log(weight="w"), [f"{ROWS} of {ROWS}", "e.g. inf"]),
    ("weight that is NaN", put("log", w=pl.lit(float("nan"))), log(weight="w"), [f"{ROWS} of {ROWS}", "e.g. nan"]),
    ("weight beyond float32", put("log", w=pl.lit(1e39)), log(weight="w"), ["not finite, e.g. 1e+39"]),
    ("weight of text", put("log", w=pl.lit("x")), log(weight="w"), ["weight column 'w' holds String"]),
    ("request of fractions", put("log", r=pl.lit(0.5)), log(request="r"), ["log.parquet", "'r'", "0.5"]),
    ("context of text", put("log", load=pl.lit("x")), {}, ["log.parquet: column 'load': declared a number", "'x'"]),
    ("context of fractions", put("log", hour=pl.lit(0.5)), {}, ["log.parquet: column 'hour'", "0.5"]),
    ("context of fractions late", put("log", hour=pl.when(pl.int_range(ROWS) == ROWS - 1).then(0.5).otherwise(1.0)), {},
     ["log.parquet: column 'hour'", "0.5"]),
    ("empty log", pieces, {}, ["log.parquet: the log is empty (0 rows)"]),
    ("one instant", put("log", time=pl.lit(START)), {}, ["training window is empty", f"{ROWS} rows", "split.valid"]),
    ("nobody to validate on", put("log", user_id=pl.lit(1)), {"split": {"by": "user"}},
     ["valid window", "split.valid"]),
    ("empty item table", no_rows("items"), {},
     ["items.parquet: the item table is empty (0 rows)", "or take `items` out"]),
    ("empty user table", no_rows("users"), {},
     ["users.parquet: the user table is empty (0 rows)", "or take `users` out"]),
    ("empty vectors", no_rows("text"), {}, ["text.parquet: holds no vectors", "Take the set out"]),
    ("empty vectors without a type", lambda t: t.update(text=t["text"][:0].cast({"vector": pl.Null})), {},
     ["text.parquet: holds no vectors"]),
    ("duplicate item", twice("items"), {}, ["items.parquet: item id 'item_id': 1 ids", "e.g. 101", "Keep one"]),
    ("null item in table", put("items", item_id=None), {}, ["items.parquet: item id 'item_id': 1 of 12 rows are null"]),
    ("duplicate user", twice("users"), {}, ["users.parquet: user id 'user_id': 1 ids", "in 9 rows, e.g. 1"]),
    ("tags that are no list", put("items", tags=pl.lit("a,b")), {}, ["items.parquet: column 'tags'", "`categorical`"]),
    ("tags of fractions", put("items", tags=pl.lit([0.5])), {}, ["items.parquet: column 'tags'", "0.5"]),
    ("price of text", put("items", price=pl.lit("7 EUR")), {}, ["items.parquet: column 'price'", "'7 EUR'", "cast"]),
    ("genre of fractions", put("items", genre=pl.lit(0.5)), {}, ["items.parquet: column 'genre'", "0.5", "numeric"]),
    ("genre of fractions untrained", untrained, {}, ["items.parquet: column 'genre'", "0.5", "numeric"]),
    ("genre of dates", put("items", genre=pl.date(2024, 1, 1)), {}, ["items.parquet: column 'genre': type Date"]),
    ("ids of two types", put("items", item_id=TEXT_ID), {}, ["are Int64 (e.g. 101)", "are String (e.g. 'i101')"]),
    ("ids of two worlds", put("items", item_id=NUMBERED), {}, ["none of the log's ids (e.g. 101)", "'item_id'"]),
    ("vector ids of another type", put("text", item_id=TEXT_ID), {}, ["text.parquet: column 'item_id'", "String"]),
    ("vectors for nobody", put("text", item_id=NUMBERED), {}, ["text.parquet: none of its 12 ids (e.g. 1000101)"]),
    ("duplicate vector", twice("text"), {}, ["text.parquet: 1 ids appear more than once, e.g. 101"]),
    ("null vector id", put("text", item_id=None), {}, ["text.parquet: 1 of 12 ids are null"]),
    ("vectors of two widths", vectors(lambda v: v[3].pop()), {}, ["1 of 12", "width than 4, e.g. 3 for id 104"]),
    ("vector with NaN", vectors(lambda v: v.__setitem__(2, [float("nan")] * 4)), {}, ["1 of 12", "NaN", "of id 103"]),
    ("vector with a null", vectors(lambda v: v[2].__setitem__(1, None)), {}, ["1 of 12", "NaN", "of id 103"]),
    ("vector beyond float32", vectors(lambda v: v[2].__setitem__(1, 1e39)), {}, ["1 of 12", "infinity", "of id 103"]),
    ("null vector", vectors(lambda v: v.__setitem__(2, None)), {}, ["1 of 12 vectors are null, e.g. of id 103"]),
    ("vectors that are no list", put("text", vector=pl.lit(1.0)), {}, ["'vector' holds Float64, expected lists"]),
    ("vectors of text", put("text", vector=pl.lit(["a"])), {}, ["'vector' holds List(String), expected lists"]),
    ("no vectors", lambda t: t.update(text=t["text"][:0]), {}, ["text.parquet: holds no vectors"]),
    ("too many components", None, text(reduce={"method": "pca", "dim": 5}), ["reduce.dim 5 is more than 4"]),
    ("npy without ids", None, text(path="text.npy"), ["text.npy: a .npy file has no ids", "`ids`"]),
]  # fmt: skip


def refused(contract: Any, out: Path, kind: type[QuadRankError], words: list[str], *args: Any) -> None:
    """The build fails in these words, and leaves neither a version nor a half-built folder."""
    with pytest.raises(kind) as caught:
        build_feature_set(contract, out, *args)
    assert caught.value.exit_code == {DataError: 4, ConfigError: 2}[kind]
    for word in words:
        assert word in str(caught.value)
    left = [path.name for path in out.rglob("*")]
    assert set(left) <= {contract.name, ".lock"}, left


@pytest.mark.parametrize(
    ("change", "over", "words"), [case[1:] for case in BAD_DATA], ids=[case[0] for case in BAD_DATA]
)
def test_data_that_breaks_its_contract(tmp_path: Path, change: Change | None, over: Any, words: list[str]) -> None:
    np.save(tmp_path / "text.npy", np.ones((12, 4)))
    contract = raw_log(tmp_path, change, over)
    refused(contract, tmp_path / "out", DataError, [str(tmp_path), *words])


FILES = ["log", "items", "users", "text"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", ["garbage", "torn", "flipped"])
def test_a_broken_parquet_is_named(tmp_path: Path, name: str, harm: str) -> None:
    """Also one whose footer is whole, so that only reading it to its end tells."""
    contract = raw_log(tmp_path)
    path = tmp_path / f"{name}.parquet"
    content = path.read_bytes()
    middle = len(content) // 6
    path.write_bytes(
        {"garbage": b"hello", "torn": content[: len(content) // 2], "flipped": b"\xff" * middle + content[middle:]}[
            harm
        ]
    )
    refused(contract, tmp_path / "out", DataError, [str(path), "cannot be read", "Write the file again"])


def test_a_file_of_no_known_kind(tmp_path: Path) -> None:
    contract = raw_log(tmp_path, None, log(path="log.xlsx"))
    (tmp_path / "log.xlsx").write_bytes(b"x")
    refused(contract, tmp_path / "out", DataError, ["log.xlsx: unknown kind of table '.xlsx'", ".parquet", ".csv"])


def test_a_folder_is_no_table(tmp_path: Path) -> None:
    contract = raw_log(tmp_path, None, log(path="days"))
    (tmp_path / "days").mkdir()
    refused(contract, tmp_path / "out", DataError, ["days: is a folder", "days/*.parquet"])


@pytest.mark.parametrize("column", ["hour", "user_id", "rating", "time"])
def test_a_csv_that_changes_its_mind(tmp_path: Path, column: str) -> None:
    """Whole numbers for its first hundred rows, then a word: polars finds out only on reading it all."""
    contract = raw_log(tmp_path, None, log(path="log.csv"))
    table = pl.read_parquet(tmp_path / "log.parquet")
    word = pl.when(pl.int_range(ROWS) == ROWS - 1).then(pl.lit("oops")).otherwise(pl.col(column).cast(pl.String))
    table.with_columns(word.alias(column)).write_csv(tmp_path / "log.csv")
    refused(contract, tmp_path / "out", DataError, [str(tmp_path / "log.csv"), "cannot be read", "oops", f"'{column}'"])


@pytest.mark.parametrize("as_of", ["yesterday", "2026-13-01", "31.01.2026"])
def test_as_of_is_a_date(tmp_path: Path, as_of: str) -> None:
    refused(raw_log(tmp_path), tmp_path / "out", ConfigError, [f"--as-of {as_of}: not a date", "2026-01-31"], as_of)


@pytest.mark.parametrize("default", ["20", "evening"])
def test_a_default_of_another_type_than_its_column(tmp_path: Path, default: str) -> None:
    """It would score every request without an hour as one at an unknown hour."""
    contract = raw_log(tmp_path, None, log(context={"hour": {"default": default}}))
    words = [f"interactions.context.hour.default: {default!r} is of the wrong type", "whole numbers, e.g. "]
    refused(contract, tmp_path / "out", ConfigError, words)


@pytest.mark.parametrize(("as_of", "day"), [("2020-01-01", "2020-01-01"), ("0001-01-01", "0001-01-01")])
def test_a_log_that_begins_after_as_of_is_not_called_empty(tmp_path: Path, as_of: str, day: str) -> None:
    words = [f"log.parquet: the log has no row on or before {day} (0 rows). Correct --as-of"]
    refused(raw_log(tmp_path), tmp_path / "out", DataError, words, as_of)


def test_as_of_may_be_the_last_day_of_all(tmp_path: Path) -> None:
    contract = raw_log(tmp_path, None, {"checks": {"max_age": "36h", "stale": "warn"}})
    found = build_feature_set(contract, tmp_path / "out", "9999-12-31").feature_set
    assert sum(window.rows for window in found.manifest.windows.values()) == ROWS


@pytest.mark.parametrize("column", ["user_id", "item_id"])
def test_ids_in_text_that_64_bits_do_not_hold_are_named(tmp_path: Path, column: str) -> None:
    contract = raw_log(tmp_path, None, log(path="log.csv"))
    table = pl.read_parquet(tmp_path / "log.parquet")
    table.with_columns(pl.lit(str(BIG)).alias(column)).write_csv(tmp_path / "log.csv")
    refused(contract, tmp_path / "out", DataError, ["log.csv", f"column '{column}'", str(BIG), "2^63"])


@pytest.mark.parametrize("over", [{}, {"label": "rating"}, {"time_format": "%Y"}], ids=["label", "time", "nothing"])
def test_a_csv_with_a_header_alone_is_empty(tmp_path: Path, over: Any) -> None:
    contract = raw_log(tmp_path, None, log(path="log.csv", **over))
    pl.read_parquet(tmp_path / "log.parquet")[:0].write_csv(tmp_path / "log.csv")
    refused(contract, tmp_path / "out", DataError, ["log.csv", "(0 rows). Check the export that wrote it."])


def test_the_untouched_log_is_fine(tmp_path: Path) -> None:
    """So each case above fails for its own reason."""
    assert not build_feature_set(raw_log(tmp_path), tmp_path / "out", "2026-01-31").reused
