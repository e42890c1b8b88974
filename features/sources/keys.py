"""Raw ids and categories as keys: whole numbers or text, whatever type a file holds them in."""

from __future__ import annotations

import polars as pl

from features.errors import DataError


def canonical(raw: pl.Series) -> pl.Series:
    """The column as Int64 or String keys. Whole floats (a csv with blanks) are integers.

    Raises:
        DataError: fractional numbers, floats too large to be exact (2^53; of 32 bits 2^24), integers that 64 bits do
            not hold, or a type that names nothing (lists, dates).
    """
    dtype = raw.dtype
    if dtype == pl.String or dtype == pl.Null:
        return raw
    if dtype in (pl.Categorical, pl.Enum, pl.Boolean):
        return raw.cast(pl.String)
    if dtype in (pl.Int64, pl.Int32, pl.Int16, pl.Int8, pl.UInt32, pl.UInt16, pl.UInt8):
        return raw.cast(pl.Int64)
    if dtype.is_integer() or dtype.is_float():
        keys = raw.cast(pl.Int64, strict=False)
        bits = 63 if dtype.is_integer() else 24 if dtype == pl.Float32 else 53
        is_key = keys.is_not_null()
        if dtype.is_float():
            # From there on a float is the nearest of several whole numbers, and may have been another one.
            is_key &= (raw == raw.floor()) & (raw.abs() < 2.0**bits)
        broken = raw.filter(raw.is_not_null() & ~is_key)
        if broken.len():
            raise DataError(
                f"column {raw.name!r}: {broken.len()} values, e.g. {broken[0]}, are not whole numbers below 2^{bits} "
                "and cannot be ids or categories. Declare the column `numeric`, round it, or write it as text."
            )
        return keys
    raise DataError(f"column {raw.name!r}: type {dtype} cannot be ids or categories. Use integers or text.")
