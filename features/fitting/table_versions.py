"""Raw item and user tables with several rows an id: each holds from its `valid_from` on."""

from __future__ import annotations

from datetime import date

import polars as pl

from features.calendar import LAST_TIME, first_instant, text_of
from features.contract.contract import Table
from features.errors import DataError
from features.sources.times import MICROSECONDS, end_of, microseconds
from features.store.versions import VALID_FROM


def valid_from(raw: pl.LazyFrame, path: str, table: Table, which: str) -> pl.Expr:
    """When a row begins to hold, µs since 1970. Raises DataError for a column that holds no times."""
    dtype = raw.collect_schema()[str(table.valid_from)]
    is_time = dtype.is_integer() or dtype == pl.Date or isinstance(dtype, pl.Datetime)
    if not is_time and not (dtype == pl.String and table.time_format):
        raise DataError(
            f"{path}: {which}s.valid_from: column {table.valid_from!r} holds {dtype}, expected timestamps, dates, "
            f"whole numbers in {which}s.time_unit, or text in {which}s.time_format. Write it as one of these."
        )
    return microseconds(raw, path, str(table.valid_from), table.time_unit, table.time_format)


def versions_of(content: pl.DataFrame, path: str, table: Table, which: str, as_of: str | None) -> pl.DataFrame:
    """Check the versions of a table, and bring them into the order of id and time.

    A version that says what the one before it said is left out, as is one that begins after `as_of`.

    Args:
        content: the id (as key), `VALID_FROM` and the declared columns.
        path: of the table, for messages.
        table: its declaration.
        which: item or user.
        as_of: last day (UTC) that is read.

    Raises:
        DataError: a null `valid_from`, two rows of one id and instant, nothing up to `as_of`.
    """
    where = f"{path}: {which}s.valid_from: column {table.valid_from!r}"
    starts = content[VALID_FROM]
    if starts.null_count():
        example = content.filter(starts.is_null())[table.id][0]
        raise DataError(
            f"{where}: {starts.null_count()} of {len(starts)} rows are null (or do not parse in {which}s.time_format), "
            f"e.g. of {which} {example!r}. Write when each row began to hold; an early date where it always did."
        )
    twice = content.filter(pl.struct(table.id, VALID_FROM).is_duplicated())
    if twice.height:
        raise DataError(
            f"{where}: {twice.height} of {len(content)} rows share {which} and instant with another, e.g. {which} "
            f"{twice[table.id][0]!r} at {text_of(twice[VALID_FROM][0])}. Keep one row each."
        )
    if as_of is not None:
        content = content.filter(pl.col(VALID_FROM) < end_of(as_of))
        if not content.height:
            raise DataError(f"{where}: no row begins on or before {as_of}. Correct --as-of, or bring older versions.")
    ordered = content.sort(table.id, VALID_FROM)
    changed = pl.any_horizontal(pl.col(name).ne_missing(pl.col(name).shift(1)) for name in (table.id, *table.columns))
    return ordered.filter(changed)


def latest(versions: pl.DataFrame, id_name: str) -> pl.DataFrame:
    """The last version of each id, sorted by id."""
    return versions.unique(id_name, keep="last", maintain_order=True).drop(VALID_FROM)


def visible(versions: pl.DataFrame, id_name: str, first: int, last: int) -> pl.DataFrame:
    """The versions that a row of some time from `first` to `last` (µs) can read."""
    replaced = pl.col(VALID_FROM).shift(-1).over(id_name)
    return versions.filter((pl.col(VALID_FROM) <= last) & (replaced.is_null() | (replaced > first)))


def refuse_wrong_unit(content: pl.DataFrame, path: str, table: Table, which: str, earliest: date) -> None:
    """Whole numbers read in the wrong unit: beyond the calendar, or all of them in the first weeks of 1970.

    Args:
        earliest: first day (UTC) that a log's time may have.

    Raises:
        DataError: the newest instant lies after the year 9999, or after 1970 began and before `earliest`.
    """
    newest = content.select(pl.col(VALID_FROM).max()).item()
    if newest is None:
        return
    if newest >= LAST_TIME or 0 < newest < first_instant(earliest):
        raise DataError(
            f"{path}: {which}s.valid_from: column {table.valid_from!r} read in {table.time_unit!r} ends at "
            f"{text_of(newest)}, outside {earliest} (checks.earliest) to 9999. Correct {which}s.time_unit (one of "
            f"{', '.join(MICROSECONDS)}), or the column."
        )
