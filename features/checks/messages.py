"""An example of the rows that break a rule: a value and where it is; of a time, the unit that it is in."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any

import polars as pl

from features.calendar import text_of
from features.checks.quarantine import rows_as_read
from features.checks.row_rules import Violation, plausible
from features.chunk import ITEM, LABEL, TIME, USER
from features.contract.contract import Contract
from features.sources.tables import scan
from features.sources.times import MICROSECONDS, microseconds


def with_example(
    violation: Violation, frame: pl.LazyFrame, path: str, contract: Contract, rows: int, now: datetime
) -> Violation:
    """The violation with an example of its rows, and a likely cause of times that are out of range.

    Args:
        violation: what was found.
        frame: the log under fixed names.
        path: of it.
        contract: what the columns are.
        rows: of the log.
        now: time of the build.
    """
    if violation.example is not None:
        return violation
    columns = list(dict.fromkeys((USER, ITEM, TIME, violation.key or USER)))
    found = frame.slice(violation.first, 1).select(columns).collect().row(0, named=True)
    where = f"row {violation.first}"
    if violation.key == TIME and violation.check == "null":
        return _unparsed(violation, path, contract, where)
    if violation.key == TIME:
        return _mistimed(violation, found[TIME], path, contract, rows, now)
    if violation.key is None or violation.check == "null":
        return replace(violation, example=f"{where} (user {found[USER]!r}, item {found[ITEM]!r})")
    value = found[violation.key]
    shown = f"{value:g}" if violation.key == LABEL and isinstance(value, float) else repr(value)
    return replace(violation, example=f"{shown} in {where}")


def _unparsed(violation: Violation, path: str, contract: Contract, where: str) -> Violation:
    """A null time; of a text column it may be one that does not parse."""
    log = contract.interactions
    name = str(log.time)
    raw = scan(path, log.format)
    if raw.collect_schema()[name] == pl.String and log.time_format is not None:
        parsed = microseconds(raw, path, name, log.time_unit, log.time_format)
        broken = raw.filter(pl.col(name).is_not_null() & parsed.is_null()).select(name).first().collect()
        if broken.height:
            return replace(
                violation,
                wrong=f"are null or do not parse as {log.time_format!r}",
                fix="Correct them in the export, or interactions.time_format.",
                example=repr(broken.item()),
            )
    return replace(violation, example=where)


def _mistimed(violation: Violation, found: int, path: str, contract: Contract, rows: int, now: datetime) -> Violation:
    """A time out of range: in which unit would it be one?"""
    log, (first, last) = contract.interactions, plausible(contract, now)
    where = f"row {violation.first}"
    raw = rows_as_read(contract, path, rows)
    value: Any = None
    # A timestamp that no calendar holds cannot be shown.
    if raw is not None and not raw.collect_schema()[str(log.time)].is_temporal():
        value = raw.select(str(log.time)).slice(violation.first, 1).collect().item()
    if not isinstance(value, int):
        shown = repr(value) if isinstance(value, str) else text_of(found)
        return replace(violation, example=f"{shown} in {where}")
    wrong = f"{violation.wrong} when read in {log.time_unit!r}"
    units = [unit for unit, factor in MICROSECONDS.items() if first <= value * factor <= last]
    fix = (
        "Correct interactions.time_unit (1700000000 is in s, 1700000000000 in ms, 1700000000000000 in us), or the "
        "export; or move checks.earliest and checks.latest."
    )
    if units and violation.rows * 2 > rows:
        fix = f"Set interactions.time_unit to {units[0]!r}: it is then {text_of(value * MICROSECONDS[units[0]])}."
    elif units:
        fix = f"Its unit is {units[0]!r}, not interactions.time_unit: write all times in one unit."
    return replace(violation, wrong=wrong, example=f"{value} in {where}", fix=fix)
