"""Each kind of corrupted input is refused in its own words, with exit code 4, and nothing built before is lost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from features.build.build import build_feature_set
from features.errors import DataError
from features.store.feature_set import FeatureSet
from tests.features.raw import ROWS, START, Tables, raw_log

FIRST = pl.int_range(pl.len()) == 0
DAYS = 86_400


@dataclass(frozen=True)
class Kind:
    """One way to corrupt input: what is done to the tables or files, what the contract says, and what is answered."""

    name: str
    says: tuple[str, ...]
    change: Callable[[Tables], object] = lambda tables: None
    files: Callable[[Path], object] = lambda folder: None
    over: dict[str, Any] = field(default_factory=dict)


def cell(table: str, column: str, value: Any) -> Callable[[Tables], object]:
    """Put a value into the first row."""
    return whole(table, column, pl.when(FIRST).then(pl.lit(value)).otherwise(pl.col(column)))


def whole(table: str, column: str, values: pl.Expr) -> Callable[[Tables], object]:
    """Replace a column."""

    def change(tables: Tables) -> None:
        tables[table] = tables[table].with_columns(values.alias(column))

    return change


def rows(table: str, edit: Callable[[pl.DataFrame], pl.DataFrame]) -> Callable[[Tables], object]:
    """Replace a table."""
    return lambda tables: tables.update({table: edit(tables[table])})


def vector(values: list[float | None] | None) -> Callable[[Tables], object]:
    """Replace the vector of item 101."""

    def change(tables: Tables) -> None:
        vectors = tables["text"]["vector"].to_list()
        vectors[0] = values
        tables["text"] = tables["text"].with_columns(vector=pl.Series(vectors, dtype=pl.List(pl.Float64)))

    return change


def as_csv(edit: Callable[[list[str]], list[str]], encoding: str = "utf-8") -> Callable[[Path], object]:
    """Write the log as text after editing its lines."""

    def write(folder: Path) -> None:
        lines = pl.read_parquet(folder / "log.parquet").write_csv().splitlines()
        (folder / "log.csv").write_text("\n".join(edit(lines)) + "\n", encoding=encoding)

    return write


def history_table(times: pl.Expr, items: pl.Expr) -> Callable[[Path], object]:
    """Write a table of earlier events, one row a user."""

    def write(folder: Path) -> None:
        pl.DataFrame({"user_id": [1]}).with_columns(item_id=items, time=times).write_parquet(folder / "past.parquet")

    return write


def dated(zone: str | None) -> pl.Expr:
    """The log's seconds as timestamps."""
    return pl.from_epoch("time", "s").dt.replace_time_zone(zone)


def log(**interactions: Any) -> dict[str, Any]:
    return {"interactions": interactions}


def strictly(check: str, **more: Any) -> dict[str, Any]:
    return {"checks": {check: "error", **more}}


TEXT_TIME = log(path="log.parquet", time_format="%Y-%m-%d %H:%M:%S")
PAST = {"history": {"tables": [{"path": "past.parquet", "user": "user_id", "item": "item_id", "time": "time"}]}}
OFTEN = pl.DataFrame({"user_id": 9, "item_id": 101, "time": START + np.arange(30), "rating": 5, "hour": 1, "load": 0.5})
KINDS = [
    Kind("user missing", ("column 'user_id': 1 of 120 rows are null, e.g. row 0 (user None, item ", "Remove or fill",
                          "`checks.null: quarantine`"), cell("log", "user_id", None)),
    Kind("item missing", ("column 'item_id': 1 of 120 rows are null, e.g. row 0 (user ",),
         cell("log", "item_id", None)),
    Kind("time missing", ("column 'time': 1 of 120 rows are null, e.g. row 0.",), cell("log", "time", None)),
    Kind("label missing", ("column 'rating >= 4': 1 of 120 rows are null",), cell("log", "rating", None)),
    Kind("time that does not parse", ("1 of 120 rows are null or do not parse as '%Y-%m-%d %H:%M:%S', e.g. '31/12/23'.",
                                      "interactions.time_format"),
         lambda t: (whole("log", "time", pl.from_epoch("time", "s").dt.to_string("%Y-%m-%d %H:%M:%S"))(t),
                    cell("log", "time", "31/12/23")(t)), over=TEXT_TIME),
    Kind("milliseconds as seconds", ("120 of 120 rows lie outside 1990-01-01 to ", "when read in 's'",
                                     f"e.g. {START}000 in row 0", "Set interactions.time_unit to 'ms'",
                                     "2023-11-14 22:13:20"),
         whole("log", "time", pl.col("time") * 1_000)),
    Kind("microseconds as seconds", (f"e.g. {START}000000 in row 0", "Set interactions.time_unit to 'us'"),
         whole("log", "time", pl.col("time") * 1_000_000)),
    Kind("seconds as milliseconds", (f"when read in 'ms', e.g. {START} in row 0", "Set interactions.time_unit to 's'"),
         over=log(time_unit="ms")),
    Kind("one time in milliseconds", ("1 of 120 rows", "Its unit is 'ms', not interactions.time_unit"),
         cell("log", "time", START * 1_000)),
    Kind("timestamps of a wrong unit", ("120 of 120 rows lie outside", "e.g. 1970-01-20 16:13:20 in row 0",
                                        "Correct them in the export"),
         whole("log", "time", pl.from_epoch("time", "ms"))),
    Kind("events of the future", (f"1 of {ROWS} rows lie outside", "e.g. 9000000000 in row 0", "checks.latest"),
         cell("log", "time", 9_000_000_000)),
    Kind("events before their time", ("lie outside 2023-11-15 to ", "move checks.earliest"),
         over={"checks": {"earliest": "2023-11-15"}}),
    Kind("time zone in the log alone", ("past.parquet: time column 'time' has no time zone, that of ",
                                        "Write both in UTC"),
         whole("log", "time", dated("Europe/Berlin")),
         history_table(pl.lit([datetime(2023, 1, 1)]), pl.lit([101])), PAST),
    Kind("label of stars", ("label 'rating': ", "neither 0 nor 1, e.g. ", "Write it as a condition"),
         over=log(label="rating")),
    Kind("weight below zero", ("weight column 'w': 1 of 120 rows are negative or not finite, e.g. -2.0 in row 0",),
         lambda t: (whole("log", "w", pl.lit(1.0))(t), cell("log", "w", -2.0)(t)), over=log(weight="w")),
    Kind("user id below zero", ("column 'user_id': 1 of 120 rows are negative ids, e.g. -1 in row 0", "No request"),
         cell("log", "user_id", -1), over={"users": None}),
    Kind("item id below zero", ("column 'item_id': 1 of 120 rows are negative ids, e.g. -7 in row 0",),
         cell("log", "item_id", -7)),
    Kind("item id of fractions", ("'item_id' holds Float64", "Cast it"), cell("log", "item_id", 101.5)),
    Kind("rows twice", ("duplicates: 3 of 123 rows repeat 'user_id', 'item_id' and 'time' of an earlier row, e.g. row ",
                        "120 (user ", "Keep one", "`checks.duplicate: quarantine`"),
         rows("log", lambda t: pl.concat([one := t.with_columns(pl.int_range(START, START + ROWS).alias("time")),
                                          one[:1], one[:2]])), over=strictly("duplicate")),
    Kind("items of no table", ("name one of 1 items that items.parquet does not list, e.g. 999 in row 0", "Add them"),
         cell("log", "item_id", 999), over=strictly("unknown_item")),
    Kind("users of no table", ("name one of 1 users that users.parquet does not list, e.g. 999 in row 0",),
         cell("log", "user_id", 999), over=strictly("unknown_user")),
    Kind("a bot", ("column 'user_id': 30 of 150 rows are of 1 users with more than 25 rows on one UTC day, "
                   "e.g. 30 of user 9 on 2023-11-14", "checks.max_rows_per_user"),
         rows("log", lambda t: pl.concat([t, OFTEN.select(t.columns).cast(t.schema)])),
         over=strictly("bot", max_rows_per_user=25)),
    Kind("number out of range", ("column 'hour': 1 of 120 rows lie outside 0 to 23, e.g. 25 in row 0", "checks.ranges"),
         cell("log", "hour", 25), over=strictly("range", ranges={"hour": [0, 23]})),
    Kind("infinite number", ("column 'load': 1 of 120 rows are infinite, e.g. inf in row 0", "count as missing"),
         cell("log", "load", float("inf")), over=strictly("range")),
    Kind("too much to put aside", ("2 of 120 rows (1.67%) would be put aside (2 for null: user_id)",
                                    "max_quarantine 0.01"),
         whole("log", "user_id", pl.when(pl.int_range(pl.len()) < 2).then(None).otherwise("user_id")),
         over={"checks": {"null": "quarantine"}}),
    Kind("log without rows", ("the log is empty (0 rows)",), rows("log", lambda t: t[:0])),
    Kind("column renamed", ("no column 'user_id'. Did you mean 'userid'?",),
         rows("log", lambda t: t.rename({"user_id": "userid"}))),
    Kind("half a parquet", ("log.parquet", "cannot be read", "Write the file again"),
         files=lambda folder: (folder / "log.parquet").write_bytes((folder / "log.parquet").read_bytes()[:900])),
    Kind("csv with a word among numbers", ("log.csv", "cannot be read", "oops", "'hour'"),
         files=as_csv(lambda lines: [*lines, "1,101,1700000000,5,oops,0.5"]), over=log(path="log.csv")),
    Kind("csv with a field too many", ("log.csv", "cannot be read", "found more fields"),
         files=as_csv(lambda lines: [*lines, "1,101,1700000000,5,1,0.5,7"]), over=log(path="log.csv")),
    Kind("csv of another separator", ("log.csv: no column 'user_id'",),
         files=as_csv(lambda lines: [line.replace(",", ";") for line in lines]), over=log(path="log.csv")),
    Kind("candidates without flags", ("candidates column 'shown': ", "do not end in -0 or -1, e.g. '101'"),
         whole("log", "shown", pl.lit("101 102-1")),
         over=log(candidates={"column": "shown", "flag": "-"}, label=None)),
    Kind("lists of unequal length", ("past.parquet: in 1 rows the lists 'item_id', 'time' are of unequal length",),
         files=history_table(pl.lit([START - DAYS]), pl.lit([101, 102])), over=PAST),
    Kind("item listed twice", ("items.parquet: item id 'item_id': 1 ids appear more than once",
                                "Keep one row each"),
         rows("items", lambda t: pl.concat([t, t[:1]]))),
    Kind("item without id", ("items.parquet: item id 'item_id': 1 of 12 rows are null",),
         cell("items", "item_id", None)),
    Kind("price with a currency", ("items.parquet: column 'price'", "'7 EUR'"),
         whole("items", "price", pl.lit("7 EUR"))),
    Kind("vector of NaN", ("text.parquet: 1 of 12", "NaN", "of id 101"), vector([float("nan")] * 4)),
    Kind("vector of another width", ("text.parquet: ", "1 of 12 vectors", "width than 4, e.g. 3 for id 101"),
         vector([1.0] * 3)),
    Kind("vector missing", ("text.parquet: 1 of 12 vectors are null, e.g. of id 101",), vector(None)),
    Kind("vector twice", ("text.parquet: 1 ids appear more than once, e.g. 101",),
         rows("text", lambda t: pl.concat([t, t[:1]]))),
    Kind("npy of other rows than ids", ("text.npy: shape (11, 4) does not fit the 12 ids",),
         files=lambda folder: np.save(folder / "text.npy", np.ones((11, 4))),
         over={"embeddings": {"text": {"path": "text.npy", "ids": "text.parquet"}}}),
]  # fmt: skip


def test_the_kinds_are_many_and_answered_differently() -> None:
    assert len({kind.name for kind in KINDS}) == len({kind.says for kind in KINDS}) == len(KINDS) >= 25


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_corrupted_input(tmp_path: Path, kind: Kind) -> None:
    out = tmp_path / "out"
    before = build_feature_set(raw_log(tmp_path / "sound"), out).feature_set
    current = (out / "raw" / "CURRENT").read_text()
    contract = raw_log(tmp_path / "broken", kind.change, kind.over)
    kind.files(tmp_path / "broken")
    with pytest.raises(DataError) as caught:
        build_feature_set(contract, out)
    assert caught.value.exit_code == 4
    for words in (str(tmp_path / "broken"), *kind.says):
        assert words in str(caught.value)
    versions = [path.name for path in (out / "raw").iterdir() if path.is_dir()]
    assert versions == [current] == [before.manifest.version], "only the old version, and nothing half-built"
    assert (out / "raw" / "CURRENT").read_text() == current
    FeatureSet.open(out / "raw" / current).verify()
