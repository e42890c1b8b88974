"""Times of raw tables as µs since 1970, and the end of a day."""

from __future__ import annotations

from datetime import date, datetime, timedelta

import polars as pl

from features.calendar import FIRST_TIME, LAST_TIME
from features.errors import DataError

MICROSECONDS = {"s": 1_000_000, "ms": 1_000, "us": 1}


def microseconds(raw: pl.LazyFrame, path: str, name: str, unit: str, text_format: str | None = None) -> pl.Expr:
    """A time column as µs since 1970. Raises DataError for a column that holds no times."""
    dtype = raw.collect_schema()[name]
    column = pl.col(name)
    if dtype == pl.String and text_format is not None:
        return column.str.to_datetime(text_format, time_unit="us", strict=False).dt.timestamp("us")
    if dtype.is_integer():
        factor = MICROSECONDS[unit]
        # Within the years that have a date; a product beyond 64 bits would wrap round to some other one.
        return column.cast(pl.Int64).clip(FIRST_TIME // factor, LAST_TIME // factor + 1) * factor
    if dtype == pl.Date or isinstance(dtype, pl.Datetime):
        return column.cast(pl.Datetime("us")).cast(pl.Int64)
    raise DataError(
        f"{path}: time column {name!r} holds {dtype}, expected timestamps, whole numbers in interactions.time_unit, or "
        "text in interactions.time_format."
    )


def end_of(day: str) -> int:
    """The first instant after a day (UTC), µs since 1970."""
    after = datetime.combine(date.fromisoformat(day) + timedelta(days=1), datetime.min.time())
    return int((after - datetime(1970, 1, 1)).total_seconds()) * 1_000_000
