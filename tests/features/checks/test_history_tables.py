"""Events of further tables are held to the checks of the log: refused, left out, or reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from features.build.build import build_feature_set
from features.contract.contract import Contract
from features.contract.settings import validate
from features.errors import DataError
from features.store.feature_set import FeatureSet
from tests.features.raw import decoded_rows

START = 1_700_000_000
LOG = pl.DataFrame(
    {"user": [1, 1, 2, 2], "item": [5, 6, 5, 7], "time": [START + t for t in (100, 200, 150, 250)], "y": [1, 0, 0, 1]}
)
PAST = pl.DataFrame({"who": [1, 1, 2], "what": [8, 9, 7], "when": [START, START + 50, START + 10]})


def contract(folder: Path, table: dict[str, Any], checks: dict[str, Any]) -> Contract:
    content = {
        "name": "past",
        "root": str(folder),
        "interactions": {"path": "log.parquet", "user": "user", "item": "item", "time": "time", "label": "y"},
        "history": {"tables": [{"path": "past.parquet", "user": "who", "item": "what", "time": "when"} | table]},
        "split": {"valid": 0.25, "test": 0.25},
        "checks": checks,
    }
    return validate(Contract, content, "past.yaml")


def built(folder: Path, past: pl.DataFrame, table: Any = None, **checks: Any) -> FeatureSet:
    LOG.write_parquet(folder / "log.parquet")
    past.write_parquet(folder / "past.parquet")
    return build_feature_set(contract(folder, table or {}, checks), folder / "out").feature_set


def histories(found: FeatureSet) -> dict[tuple[Any, Any], list[Any]]:
    return {(row["user"], row["item"]): row["history"] for row in decoded_rows(found)}


def test_a_sound_table_is_read_without_a_word(tmp_path: Path) -> None:
    found = built(tmp_path, PAST)
    assert histories(found) == {(1, 5): [8, 9], (1, 6): [8, 9, 5], (2, 5): [7], (2, 7): [7, 5]}
    assert not [finding for finding in found.manifest.findings if "past.parquet" in finding]


def test_times_in_another_unit_name_the_unit(tmp_path: Path) -> None:
    words = (
        r"past.parquet: history.tables: time column 'when': 3 of 3 events lie outside 1990-01-01 to .* when read in "
        r"'s', e\.g\. 1700000000000 of user 1\. Set its time_unit to 'ms'\. `checks.time_range: quarantine` leaves such"
    )
    with pytest.raises(DataError, match=words):
        built(tmp_path, PAST.with_columns(pl.col("when") * 1000))
    found = built(tmp_path, PAST.with_columns(pl.col("when") * 1000), {"time_unit": "ms"})
    assert histories(found)[1, 5] == [8, 9]


def test_a_timestamp_out_of_range_is_shown_as_one(tmp_path: Path) -> None:
    dates = PAST.with_columns(pl.from_epoch(pl.Series([START, START + 50, 10])).alias("when"))
    with pytest.raises(
        DataError, match=r"1 of 3 events lie outside .*, e\.g\. 1970-01-01 00:00:10 of user 2\. Correct"
    ):
        built(tmp_path, dates)


@pytest.mark.parametrize(("column", "user"), [("who", "None"), ("what", "1"), ("when", "1")])
def test_a_missing_value_is_an_error(tmp_path: Path, column: str, user: str) -> None:
    broken = PAST.with_columns(pl.when(pl.col("what") != 9).then(column).alias(column))
    if column == "what":
        broken = PAST.with_columns(what=pl.Series([8, None, 7]))
    with pytest.raises(DataError, match=rf"column '{column}': 1 of 3 events are null, e\.g\. of user {user}\."):
        built(tmp_path, broken)


def test_a_negative_id_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"column 'what': 1 of 3 events are below 0, e\.g\. -9 of user 1\."):
        built(tmp_path, PAST.with_columns(what=pl.Series([8, -9, 7])))


def test_quarantine_leaves_events_out_and_says_so(tmp_path: Path) -> None:
    broken = PAST.with_columns(when=pl.Series([START, 50, START + 10]))
    found = built(tmp_path, broken, time_range="quarantine", max_quarantine=0.5, latest="2026-01-31")
    assert histories(found)[1, 5] == [8]
    assert [finding for finding in found.manifest.findings if "past.parquet" in finding] == [
        "past.parquet: history.tables: time column 'when': 1 of 3 events lie outside 1990-01-01 to "
        "2026-01-31 when read in 's', e.g. 50 of user 1. They were left out."
    ]


def test_too_many_events_to_leave_out_stop_the_build(tmp_path: Path) -> None:
    broken = PAST.with_columns(when=pl.Series([START, 50, START + 10]))
    with pytest.raises(DataError, match=r"past.parquet: 1 of 3 events \(33.33%\) would be left out, more than "):
        built(tmp_path, broken, time_range="quarantine")


def test_a_warned_of_event_stays_unless_no_calendar_holds_it(tmp_path: Path) -> None:
    found = built(tmp_path, PAST.with_columns(when=pl.Series([START, 50, START + 10])), time_range="warn")
    assert histories(found)[1, 5] == [9, 8]
    with pytest.raises(DataError, match=r"1 of 3 events leave the years 1 to 9999"):
        built(tmp_path, PAST.with_columns(when=pl.Series([START, START * 1000, START])), time_range="warn")


def test_users_without_events_are_no_missing_values(tmp_path: Path) -> None:
    lists = pl.DataFrame(
        {"who": [1, 2, 3], "what": [[8, 9], [], None], "when": [[START, START + 50], [], None]},
        schema_overrides={"what": pl.List(pl.Int64), "when": pl.List(pl.Int64)},
    )
    assert histories(built(tmp_path, lists)) == {(1, 5): [8, 9], (1, 6): [8, 9, 5], (2, 5): [], (2, 7): [5]}


def test_a_list_beside_none_is_of_another_length(tmp_path: Path) -> None:
    lists = pl.DataFrame({"who": [1, 2], "what": [[8], [9]], "when": [[START], None]})
    with pytest.raises(DataError, match=r"in 1 rows the lists 'what', 'when' are of unequal length"):
        built(tmp_path, lists)


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (pl.col("who").cast(pl.String), r"'who': holds String where whole numbers was learned"),
        (pl.col("who") + 0.5, r"'who': 3 values, e\.g\. 1\.5, are not whole numbers"),
        (
            pl.col("what").cast(pl.String),
            r"'what' holds ids of type String, e\.g\. '7', those of .*\.parquet are Int64",
        ),
        (pl.col("what") + 0.5, r"'what': 3 values, e\.g\. 7\.5, are not whole numbers"),
        (pl.concat_list("what"), r"'what' holds lists, and 'when' holds Int64"),
    ],
)
def test_ids_that_are_not_those_of_the_log_name_the_table(tmp_path: Path, column: pl.Expr, words: str) -> None:
    with pytest.raises(DataError, match=rf"past\.parquet: column {words}"):
        built(tmp_path, PAST.with_columns(column))


def test_a_table_of_text_without_a_line_has_no_events(tmp_path: Path) -> None:
    LOG.write_parquet(tmp_path / "log.parquet")
    (tmp_path / "past.csv").write_text("who,what,when\n")
    found = build_feature_set(contract(tmp_path, {"path": "past.csv"}, {}), tmp_path / "out").feature_set
    assert histories(found) == {(1, 5): [], (1, 6): [5], (2, 5): [], (2, 7): [5]}
