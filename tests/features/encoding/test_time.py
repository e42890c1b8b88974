"""Parts of dates, against Python's own calendar and by hand."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.contract.columns import DatePart
from features.encoding.time import PARTS, DatePartEncoder

EPOCH = datetime(1970, 1, 1)
LITERAL = {
    "hour": lambda time: 2 + time.hour,
    "weekday": lambda time: 2 + time.weekday(),
    "day": lambda time: 1 + time.day,
    "month": lambda time: 1 + time.month,
    "week": lambda time: 1 + time.isocalendar().week,
}
any_time = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30))


def encoder_of(part: Any, unit: Any = "s") -> DatePartEncoder:
    return DatePartEncoder.fit(pl.Series("time", [0]), DatePart(type="date", part=part, time_unit=unit))


@pytest.mark.parametrize("part", PARTS)
def test_every_part_is_the_calendars(part: str) -> None:
    encoder = encoder_of(part)

    @given(st.lists(any_time, min_size=1, max_size=5))
    def check(times: list[datetime]) -> None:
        expected = [LITERAL[part](time) for time in times]
        assert encoder.encode(pl.Series("time", times, dtype=pl.Datetime("us"))).tolist() == expected
        assert max(expected) < encoder.field("time").size
        seconds = [(time - EPOCH) // timedelta(seconds=1) for time in times]
        assert encoder.encode(pl.Series("time", seconds)).tolist() == expected
        assert [int(encoder.encode_one(value)[0]) for value in seconds] == expected
        assert [int(encoder.encode_one(time.isoformat())[0]) for time in times] == expected

    check()


@pytest.mark.parametrize(("part", "size"), [("hour", 26), ("weekday", 9), ("day", 33), ("month", 14), ("week", 55)])
def test_sizes_are_fixed_and_every_index_has_a_time(part: str, size: int) -> None:
    encoder = encoder_of(part)
    assert encoder.field("time").size == size
    assert [int(encoder.encode_one(encoder.raw_value(index))[0]) for index in range(2, size)] == list(range(2, size))


def test_by_hand() -> None:
    # 29 February 2024 was a Thursday of ISO week 9; 1 January 2021 a Friday of week 53.
    leap, new_year = datetime(2024, 2, 29, 23, 59), datetime(2021, 1, 1)
    column = pl.Series("time", [leap, new_year, None])
    expected = {"hour": [25, 2, 1], "weekday": [5, 6, 1], "day": [30, 2, 1], "month": [3, 2, 1], "week": [10, 54, 1]}
    assert {part: encoder_of(part).encode(column).tolist() for part in PARTS} == expected


@pytest.mark.parametrize(("unit", "per_second"), [("s", 1), ("ms", 1_000), ("us", 1_000_000)])
def test_whole_numbers_are_in_the_declared_unit(unit: str, per_second: int) -> None:
    encoder = encoder_of("hour", unit)
    ten = int(datetime(2024, 5, 6, 10, tzinfo=UTC).timestamp()) * per_second
    # One tick before ten it is nine; so it is one tick before 1970 (hour 23).
    assert encoder.encode(pl.Series("time", [ten, ten - 1, 0, -1])).tolist() == [12, 11, 2, 25]
    assert [int(encoder.encode_one(value)[0]) for value in (ten, ten - 1, 0, -1)] == [12, 11, 2, 25]
    # Text and times say their unit themselves.
    assert encoder.encode_one("2024-05-06T10:00:00Z").tolist() == [12]
    assert encoder.encode(pl.Series("time", [datetime(2024, 5, 6, 10)])).tolist() == [12]


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
def test_columns_of_any_precision_and_zone(unit: Any) -> None:
    tokyo = timezone(timedelta(hours=9))
    times = [datetime(2024, 5, 6, 3, tzinfo=tokyo), datetime(1960, 5, 6, 8, 59, 59, 999_000, tzinfo=tokyo)]
    column = pl.Series("time", times).dt.convert_time_zone("Asia/Tokyo").dt.cast_time_unit(unit)
    # Three in Tokyo is 18 o'clock of the day before in UTC.
    assert encoder_of("hour").encode(column).tolist() == [20, 25]
    assert encoder_of("day").encode(column).tolist() == [6, 6]
    assert [int(encoder_of("hour").encode_one(time.isoformat())[0]) for time in times] == [20, 25]


def test_days_begin_at_midnight() -> None:
    column = pl.Series("time", [date(2024, 5, 6), None])
    assert encoder_of("hour").encode(column).tolist() == [2, 1]
    assert encoder_of("day").encode(column).tolist() == [7, 1]
    assert encoder_of("day").encode_one("2024-05-06").tolist() == [7]


@pytest.mark.parametrize("seconds", [253_402_300_799, -62_135_596_800])
def test_outside_the_calendar_is_unknown(seconds: int) -> None:
    encoder = encoder_of("month")
    outside = seconds + (1 if seconds > 0 else -1)
    assert encoder.encode(pl.Series("time", [seconds, outside])).tolist() == [13 if seconds > 0 else 2, 1]
    assert encoder.encode_one(seconds)[0] != 1 and encoder.encode_one(outside).tolist() == [1]
