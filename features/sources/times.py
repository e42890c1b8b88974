"""Times of raw tables as µs since 1970, and the end of a day."""

from __future__ import annotations

from datetime import date

import polars as pl

from features.calendar import DAY, FIRST_TIME, LAST_TIME, first_instant
from features.errors import DataError

MICROSECONDS = {"s": 1_000_000, "ms": 1_000, "us": 1}


def microseconds(raw: pl.LazyFrame, path: str, name: str, unit: str, text_format: str | None = None) -> pl.Expr:
    """A time column as µs since 1970; null where it has no value, whatever its type is then.

    Raises:
        DataError: a column that holds no times.
    """
    dtype = raw.collect_schema()[name]
    column = pl.col(name)
    if dtype == pl.String and text_format is not None:
        return column.str.to_datetime(text_format, time_unit="us", strict=False).dt.timestamp("us")
    if dtype.is_integer():
        # Those that 64 bits do not hold are no times; the narrow ones do not take the bounds in their own type.
        is_wide = dtype in (pl.UInt64, pl.Int128, pl.UInt128)
        return _scaled(column if is_wide else column.cast(pl.Int64), MICROSECONDS[unit], dtype.is_unsigned_integer())
    if dtype == pl.Date:
        return _scaled(column.cast(pl.Int64), DAY)
    if isinstance(dtype, pl.Datetime):
        ticks = column.cast(pl.Int64)
        return ticks // 1_000 if dtype.time_unit == "ns" else _scaled(ticks, MICROSECONDS[dtype.time_unit])
    if dtype in (pl.Null, pl.String) and _has_no_value(raw, name):
        return pl.lit(None, pl.Int64)
    raise DataError(
        f"{path}: time column {name!r} holds {dtype}, expected timestamps, whole numbers in interactions.time_unit, or "
        "text in interactions.time_format."
    )


def end_of(day: str) -> int:
    """The first instant after a day (UTC), µs since 1970."""
    return first_instant(date.fromisoformat(day)) + DAY


def _scaled(ticks: pl.Expr, factor: int, is_unsigned: bool = False) -> pl.Expr:
    """Within the years that have a date; a product beyond 64 bits would wrap round to some other one."""
    first = 0 if is_unsigned else FIRST_TIME // factor
    return ticks.clip(first, LAST_TIME // factor + 1).cast(pl.Int64) * factor


def _has_no_value(raw: pl.LazyFrame, name: str) -> bool:
    return not raw.select(pl.col(name).is_not_null().any()).collect(engine="streaming").item()
