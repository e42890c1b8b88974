"""Rows of one request know the same past: that of its earliest row, for histories, counters and negatives."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from features.build.build import build_feature_set
from features.contract.contract import Contract
from features.contract.settings import validate
from features.encoding.encoder import Encoder
from features.store.feature_set import SPLITS, FeatureSet

DAY = 86_400
FIRST = int(datetime(2026, 3, 1, tzinfo=UTC).timestamp())


def contract(folder: Path, **more: Any) -> Contract:
    content: dict[str, Any] = {
        "name": "requests",
        "root": str(folder),
        "interactions": {
            "path": "log/*.parquet", "user": "user", "item": "item", "time": "time", "label": "label",
            "request": "request", "user_min_count": 1, "item_min_count": 1,
        },
        "history": {"max_len": 8},
        "counters": {"shown": {"of": "item", "value": "count"}},
        "split": {"valid": 0.2, "test": 0.2},
    }  # fmt: skip
    return validate(Contract, content | more, "requests.yaml")


def rows_of(found: FeatureSet) -> list[dict[str, Any]]:
    """Every row, by time and item: raw item, request, seconds since the first day, its history, its raw counter."""
    encoder, result = Encoder.load(found.path), []
    for split in SPLITS:
        for rows, events in zip(found.rows(split), found.events(split), strict=True):
            for i in range(len(rows["user"])):
                past = slice(rows["history_end"][i] - rows["history_len"][i], rows["history_end"][i])
                result.append(
                    {
                        "item": encoder.items.value(rows["item"][i]),
                        "at": int(rows["time"][i]) // 1_000_000 - FIRST,
                        "history": [encoder.items.value(row) for row in events["item"][past]],
                        **{name: float(rows[name][i]) for name in found.contract.counters},
                    }
                )
    return sorted(result, key=lambda row: (row["at"], str(row["item"])))


def write(folder: Path, table: pl.DataFrame, file: str = "all") -> None:
    (folder / "log").mkdir(exist_ok=True)
    table.with_columns(pl.col("time") + FIRST).write_parquet(folder / f"log/{file}.parquet")


LOG = pl.DataFrame(
    {
        "user": [1, 1, 2, 1, 2, 1, 1, 1],
        "item": [11, 12, 11, 11, 12, 13, 11, 12],
        "time": [0, 10, 11, 12, 12, 20, 30, 40],
        "label": [0, 1, 0, 1, 0, 1, 0, 1],
        # User 1 sees 12, then 11 and 13 on one page; user 2's request has the same number by chance.
        "request": ["a", "b", "b", "b", "c", "b", None, None],
    }
)
HISTORIES = {0: [], 10: [11], 12: [11], 20: [11], 30: [11, 12, 11, 13], 40: [11, 12, 11, 13, 11]}


def of_user_1(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if (row["at"], row["item"]) not in ((11, 11), (12, 12))]


@pytest.mark.parametrize("chunk", [None, 3])
def test_a_request_sees_the_past_of_its_first_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int | None
) -> None:
    if chunk:
        monkeypatch.setattr("features.sources.log.ROWS_A_CHUNK", chunk)
        monkeypatch.setattr("features.build.build.ROWS_A_SHARD", chunk)
    write(tmp_path, LOG)
    found = build_feature_set(contract(tmp_path), tmp_path / "out").feature_set
    mine = of_user_1(rows_of(found))
    assert {row["at"]: row["history"] for row in mine} == HISTORIES
    # Rows keep their own time.
    assert [row["at"] for row in mine] == [0, 10, 12, 20, 30, 40]


def test_a_request_that_lasts_is_reported(tmp_path: Path) -> None:
    hours = LOG.with_columns(pl.col("time") * 360)
    write(tmp_path, hours)
    found = build_feature_set(contract(tmp_path), tmp_path / "out").feature_set
    # User 1's request b, from 3,600 to 7,200 seconds; that of user 2 has one row.
    assert [one for one in found.manifest.findings if "request" in one] == []
    write(tmp_path, hours.with_columns(pl.col("time") + pl.col("time") // 7_200))
    found = build_feature_set(contract(tmp_path), tmp_path / "out").feature_set
    assert [one for one in found.manifest.findings if "request" in one] == [
        "column 'request': 1 requests last longer than an hour, the longest 1:00:01. All rows of one know no more than "
        "its first. A session is no request: leave interactions.request out then; history.session_gap tells sessions."
    ]


def test_counters_are_as_of_the_request(tmp_path: Path) -> None:
    write(tmp_path, LOG)
    found = build_feature_set(contract(tmp_path), tmp_path / "out").feature_set
    shown = Encoder.load(found.path).candidate["shown"]
    raw = {shown.encode(pl.Series([float(n)]))[0].item(): n for n in range(6)}
    by_time = {(row["at"], row["item"]): raw[row["shown"]] for row in rows_of(found)}
    # Item 11 at 12: shown at 0 before its request began at 10; user 2 has seen it at 11 since. At 30: at 0, 11 and 12.
    assert by_time[12, 11] == 1 and by_time[30, 11] == 3
    assert by_time[20, 13] == 0 and by_time[40, 12] == 2


def test_another_file_may_number_its_requests_anew(tmp_path: Path) -> None:
    for name, table in {"all": LOG[:3], "valid": LOG[3:5], "test": LOG[5:]}.items():
        write(tmp_path, table, name)
    files = {"by": "files", "valid": "log/valid.parquet", "test": "log/test.parquet"}
    log = contract(tmp_path).interactions.model_dump() | {"path": "log/all.parquet"}
    found = build_feature_set(contract(tmp_path, split=files, interactions=log), tmp_path / "out").feature_set
    histories = {row["at"]: row["history"] for row in of_user_1(rows_of(found))}
    assert histories == HISTORIES | {12: [11, 12], 20: [11, 12, 11]}


def over_midnight(day: int) -> pl.DataFrame:
    """User 1's page is shown from two seconds before midnight on, item by item."""
    at = day * DAY
    return pl.DataFrame(
        {
            "user": [1, 1, 1, 1, 2],
            "item": [11, 12, 13, 14, 11],
            "time": [at + 1, at + 2, at + 3, at + DAY - 2, at + 40],
            "label": [1, 0, 1, 0, 1],
            "request": [day - 1, day - 1, day - 1, day, -7],
        }
    )


def test_of_whole_days_a_request_over_midnight_begins_again(tmp_path: Path) -> None:
    for day in range(5):
        write(tmp_path, over_midnight(day), str(day))
    declared = contract(tmp_path, split={"by": "days", "valid": 1, "test": 1}, counters={}, history={"max_len": 3})
    whole = rows_of(build_feature_set(declared, tmp_path / "whole").feature_set)
    at = 2 * DAY
    # The page of day 1, 23:59:58, goes on at 0:00:01 of day 2: its three rows there know what was known at 0:00:01.
    of_page = [row["history"] for row in whole if row["at"] in (at + 1, at + 2, at + 3)]
    assert of_page == [[12, 13, 14]] * 3
    assert [row["history"] for row in whole if row["at"] == at + DAY - 2] == [[11, 12, 13]]
    for last in (3, 4):
        as_of = f"2026-03-0{last + 1}"
        daily = build_feature_set(declared, tmp_path / "daily", as_of=as_of, window=3).feature_set
    assert rows_of(daily) == [row for row in whole if row["at"] >= at]


def test_negatives_are_drawn_as_of_the_request(tmp_path: Path) -> None:
    # Others take items 2 to 9, one a minute; user 1 takes 20 at minute 8, in a request that began at minute 2.
    table = pl.DataFrame(
        {
            "user": [12, 13, 1, *range(14, 20), 1, 30],
            "item": [2, 3, 19, *range(4, 10), 20, 21],
            "time": [0, 60, 120, *range(150, 510, 60), 510, 600],
            "request": [100, 101, 1, *range(102, 108), 1, 108],
        }
    )
    write(tmp_path, table)
    log = contract(tmp_path).interactions.model_dump() | {"label": None, "negatives": {"per_positive": 4}}
    found = build_feature_set(contract(tmp_path, interactions=log, counters={}), tmp_path / "out").feature_set
    drawn = {row["item"] for row in rows_of(found) if row["at"] == 510}
    assert drawn == {20, 2, 3}
