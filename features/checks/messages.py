"""One of the rows that break a rule, shown: its value, where it is, and what it gives away of the cause."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import polars as pl

from features.calendar import FIRST_TIME, LAST_TIME
from features.checks.quarantine import rows_as_read
from features.checks.row_rules import EPOCH, Violation, plausible
from features.chunk import ITEM, LABEL, TIME, USER
from features.contract.contract import Contract
from features.sources.log import MICROSECONDS, microseconds
from features.sources.tables import scan


def with_example(
    one: Violation, frame: pl.LazyFrame, path: str, contract: Contract, rows: int, now: datetime
) -> Violation:
    """The violation with an example of its rows, and what that gives away of the cause.

    Args:
        one: what was found.
        frame: the log under fixed names.
        path: of it.
        contract: what the columns are.
        rows: of the log.
        now: time of the build.
    """
    if one.example is not None:
        return one
    row = frame.slice(one.first, 1).select(USER, ITEM, TIME, *{one.key or USER}.difference({USER, ITEM, TIME}))
    found = row.collect().row(0, named=True)
    where = f"row {one.first}"
    if one.key == TIME and one.check == "null":
        return _unparsed(one, path, contract, where)
    if one.key == TIME:
        return _mistimed(one, found[TIME], path, contract, rows, now)
    if one.key is None or one.check == "null":
        return replace(one, example=f"{where} (user {found[USER]!r}, item {found[ITEM]!r})")
    value = found[one.key]
    shown = f"{value:g}" if one.key == LABEL and isinstance(value, float) else repr(value)
    return replace(one, example=f"{shown} in {where}")


def _unparsed(one: Violation, path: str, contract: Contract, where: str) -> Violation:
    """A null time; of a text column it may be one that does not parse."""
    log = contract.interactions
    name = str(log.time)
    raw = scan(path, log.format)
    if raw.collect_schema()[name] == pl.String and log.time_format is not None:
        parsed = microseconds(raw, path, name, log.time_unit, log.time_format)
        broken = raw.filter(pl.col(name).is_not_null() & parsed.is_null()).select(name).first().collect()
        if broken.height:
            return replace(
                one,
                wrong=f"are null or do not parse as {log.time_format!r}",
                way_out="Correct them in the export, or interactions.time_format.",
                example=repr(broken.item()),
            )
    return replace(one, example=where)


def _mistimed(one: Violation, found: int, path: str, contract: Contract, rows: int, now: datetime) -> Violation:
    """A time out of range: in which unit would it be one?"""
    log, (first, last) = contract.interactions, plausible(contract, now)
    where = f"row {one.first}"
    raw = rows_as_read(contract, path, rows)
    value: Any = None
    if raw is not None:
        value = raw.select(str(log.time)).slice(one.first, 1).collect().item()
    if not isinstance(value, int):
        shown = repr(value) if isinstance(value, str) else _instant(found)
        return replace(one, example=f"{shown} in {where}", way_out=_misread(found, first, last) or one.way_out)
    wrong = f"{one.wrong} when read in {log.time_unit!r}"
    units = [unit for unit, factor in MICROSECONDS.items() if first <= value * factor <= last]
    way_out = (
        "Correct interactions.time_unit (1700000000 is in s, 1700000000000 in ms, 1700000000000000 in us), or the "
        "export; or move checks.earliest and checks.latest."
    )
    if units and one.rows * 2 > rows:
        way_out = f"Set interactions.time_unit to {units[0]!r}: it is then {_instant(value * MICROSECONDS[units[0]])}."
    elif units:
        way_out = f"Its unit is {units[0]!r}, not interactions.time_unit: write all times in one unit."
    return replace(one, wrong=wrong, example=f"{value} in {where}", way_out=way_out)


def _misread(found: int, first: int, last: int) -> str | None:
    for factor, was, taken in ((1_000, "s", "ms"), (1_000_000, "s", "us"), (0.001, "ms", "s")):
        if first <= found * factor <= last:
            return f"The export read {was} as {taken}: rightly it is {_instant(int(found * factor))}. Correct it there."
    return None


def _instant(microseconds: int) -> str:
    if not FIRST_TIME < microseconds < LAST_TIME:
        return "a time beyond the years 1 to 9999"
    return f"{EPOCH + timedelta(microseconds=microseconds):%Y-%m-%d %H:%M:%S}"
