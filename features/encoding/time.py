"""Encoders of times: a part of the date, and the pause since the event before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from typing import Any, Self

import numpy as np
import polars as pl

from features.calendar import EPOCH, FIRST_TIME, LAST_TIME, SECOND
from features.contract.columns import DatePart, Gap
from features.encoding.base import ColumnEncoder
from features.encoding.number import BucketsEncoder
from features.encoding.vocabulary import Vocabulary
from features.errors import ConfigError, DataError
from features.store.schema import FIRST_VALUE, UNKNOWN, Field

PER_SECOND = {"s": 1, "ms": 1_000, "us": SECOND}
HOUR_SECONDS, DAY_SECONDS = 3_600, 86_400
NO_TIME = -(2**63)  # seconds of a missing time
# How many values a part has, and the first of them.
PARTS = {"hour": (24, 0), "weekday": (7, 1), "day": (31, 1), "month": (12, 1), "week": (53, 1)}


class DatePartEncoder(ColumnEncoder):
    """A time to a part of its date in UTC: 2 + hour, weekday from Monday, day, month or ISO week; missing is 1.

    Args:
        part: one of `PARTS`.
        time_unit: of whole numbers since 1970.
    """

    kind = "date"

    def __init__(self, part: str, time_unit: str) -> None:
        self.part = part
        self.time_unit = time_unit

    @classmethod
    def fit(cls, raw: pl.Series, spec: DatePart, times: pl.Series | None = None) -> Self:
        """Nothing is learned."""
        _seconds(raw, spec.time_unit)
        return cls(spec.part, spec.time_unit)

    def field(self, name: str) -> Field:
        """How a model sees the column."""
        return Field(name=name, kind="categorical", size=PARTS[self.part][0] + FIRST_VALUE)

    def encode(self, raw: pl.Series) -> np.ndarray:
        """A column of times, dates or whole numbers, int32 [rows]."""
        return self._encoded(_seconds(raw, self.time_unit).fill_null(NO_TIME).to_numpy()).astype(np.int32)

    def encode_one(self, value: Any) -> np.ndarray:
        """One time, as ISO text (UTC where it names no zone) or a whole number, int64 [1]."""
        return self.encode_many([value])

    def encode_many(self, values: Sequence[Any] | np.ndarray) -> np.ndarray:
        """Several times, int64 [N]."""
        if set(map(type, values)) == {int}:
            with suppress(OverflowError):
                return self._encoded(np.array(values, np.int64) // PER_SECOND[self.time_unit])
        return self._encoded(np.array([self._seconds_of(value) for value in values], np.int64))

    def raw_value(self, encoded: Any) -> Any:
        """A time of that part, as ISO text."""
        if encoded < FIRST_VALUE:
            return None
        value = int(encoded) - FIRST_VALUE + PARTS[self.part][1]
        match self.part:
            case "hour":
                return datetime(2024, 1, 1, value).isoformat()
            case "month":
                return date(2024, value, 1).isoformat()
            case "week":
                return date.fromisocalendar(2020, value, 1).isoformat()  # a year of 53 weeks
        # A weekday or a day: 1 January 2024 is a Monday.
        return date(2024, 1, value).isoformat()

    def special_row(self, index: int) -> np.ndarray:
        """The entry of a padding (0) or unknown (1) table row."""
        return np.array([index], np.int32)

    def check(self, where: str, value: Any) -> None:
        """Refuse what is no time: other text, fractions, booleans."""
        try:
            if isinstance(value, str):
                datetime.fromisoformat(value)
            is_time = value is None or (isinstance(value, str | int) and not isinstance(value, bool))
        except ValueError:
            is_time = False
        if not is_time:
            raise ConfigError(
                f"{where}: {value!r} is no time. Write it as 2026-01-31T13:00:00Z, or as a whole number since 1970 "
                f"in {self.time_unit!r}."
            )

    def _seconds_of(self, value: Any) -> int:
        if isinstance(value, str):
            time = datetime.fromisoformat(value)
            # Whole numbers: as a float, the last microsecond of a far year is already the next second.
            return ((time if time.tzinfo else time.replace(tzinfo=UTC)) - EPOCH) // timedelta(seconds=1)
        if value is None or not -(2**63) <= value < 2**63:
            return NO_TIME
        return int(value) // PER_SECOND[self.time_unit]

    def _encoded(self, seconds_R: np.ndarray) -> np.ndarray:
        """Indices of seconds since 1970, int64 [R]; 1 outside the calendar."""
        inside_R = (seconds_R >= FIRST_TIME // SECOND) & (seconds_R < LAST_TIME // SECOND)
        return np.where(inside_R, FIRST_VALUE + _part(np.where(inside_R, seconds_R, 0), self.part), UNKNOWN)

    def to_json(self, keep: Callable[[Vocabulary], str]) -> dict[str, Any]:
        """The part and the unit."""
        return {"part": self.part, "time_unit": self.time_unit}

    @classmethod
    def from_json(cls, learned: dict[str, Any], find: Callable[[str], Vocabulary]) -> Self:
        """Read what `to_json` wrote."""
        return cls(learned["part"], learned["time_unit"])


class GapEncoder(BucketsEncoder):
    """Seconds since the event before to buckets that double: below 2, below 4, below 8, …; missing is 1."""

    kind = "gap"

    @classmethod
    def fit(cls, raw: pl.Series, spec: Gap, times: pl.Series | None = None) -> Self:  # type: ignore[override]
        """Nothing is learned."""
        return cls([float(2**power) for power in range(1, spec.buckets)])


def _part(seconds_R: np.ndarray, part: str) -> np.ndarray:
    """A part of the date in UTC, counted from 0, of seconds since 1970, int64 [R]."""
    if part == "hour":
        return seconds_R % DAY_SECONDS // HOUR_SECONDS
    day_R = seconds_R // DAY_SECONDS
    weekday_R = (day_R + 3) % 7  # 1970 began on a Thursday
    if part == "weekday":
        return weekday_R
    date_R = day_R.astype("datetime64[D]")
    month_R = date_R.astype("datetime64[M]")
    if part == "day":
        return (date_R - month_R).astype(np.int64)
    if part == "month":
        return month_R.astype(np.int64) % 12
    # The ISO week of a day is that of its Thursday, counted within the Thursday's year.
    thursday_R = date_R + (3 - weekday_R)
    return (thursday_R - thursday_R.astype("datetime64[Y]")).astype(np.int64) // 7


def _seconds(raw: pl.Series, time_unit: str) -> pl.Series:
    """Whole seconds since 1970, rounded down; null where missing."""
    if raw.dtype == pl.Date or isinstance(raw.dtype, pl.Datetime):
        per_second, ticks = 1_000_000, raw.cast(pl.Datetime("us")).cast(pl.Int64)
    elif raw.dtype.is_integer() or raw.dtype == pl.Null:
        per_second, ticks = PER_SECOND[time_unit], raw.cast(pl.Int64, strict=False)
    else:
        raise DataError(
            f"column {raw.name!r}: declared `date` but holds {raw.dtype}, expected times or whole numbers. Cast it."
        )
    return ticks // per_second
