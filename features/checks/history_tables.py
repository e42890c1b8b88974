"""Events of `history.tables` against the contract's checks: refused, left out, or reported."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import polars as pl

from features.calendar import FIRST_TIME, LAST_TIME, day_of
from features.checks.check_log import Finding
from features.checks.row_rules import plausible
from features.chunk import HISTORY, ITEM, RAW_TIME, TIME, USER
from features.contract.contract import Contract
from features.contract.log import HistoryTable, Policy
from features.errors import DataError
from features.sources.log import event_tables
from features.sources.tables import named, readable
from features.sources.times import MICROSECONDS, end_of


@dataclass(frozen=True)
class _Rule:
    """What is true of a sound event; `shown` is the column that an example shows, if any."""

    check: str
    policy: Policy
    column: str
    subject: str
    valid: pl.Expr
    wrong: str
    fix: str
    shown: str | None = None

    @property
    def broken(self) -> pl.Expr:
        """True of an event that breaks the rule."""
        return ~self.valid.fill_null(True)


@dataclass(frozen=True)
class _Broken:
    """Events that break a rule: how many, the first one's user and the value to show of it."""

    rule: _Rule
    events: int
    user: Any
    shown: Any


def checked_events(
    contract: Contract, as_of: str | None = None, now: datetime | None = None
) -> tuple[tuple[pl.LazyFrame, ...], tuple[Finding, ...]]:
    """The events of `history.tables` under the log's fixed names, and what the checks found.

    `checks.null` (user, item or time), `checks.negative_id` and `checks.time_range` hold for them as for rows of the
    log; with `quarantine` an event is left out and reported. One pass a table.

    Args:
        contract: the tables and the checks.
        as_of: leave out what came after this day (UTC).
        now: time of the build, with its zone; default the present.

    Returns:
        Lazily `_user _item _time` and `_history.<name>`, one frame a table; findings without the tables' folder.

    Raises:
        DataError: missing file or column, lists of unequal length, events that break a check whose policy is `error`
            (all such checks of a table in one error), or more to leave out than `checks.max_quarantine`.
    """
    now = now or datetime.now(UTC)
    frames, findings = [], []
    for table, frame in zip(contract.history.tables, event_tables(contract), strict=True):
        kept, found = _checked(frame, table, contract, now)
        findings += found
        frames.append(kept if as_of is None else kept.filter(pl.col(TIME) < end_of(as_of)))
    return tuple(frames), tuple(findings)


def _checked(
    frame: pl.LazyFrame, table: HistoryTable, contract: Contract, now: datetime
) -> tuple[pl.LazyFrame, list[Finding]]:
    path, most = contract.resolve(table.path), contract.checks.max_quarantine
    rules = list(_rules(frame.collect_schema(), table, contract, now))
    aside = pl.any_horizontal(pl.lit(False), *(rule.broken for rule in rules if rule.policy == "quarantine"))
    texts = {HISTORY + name: named(f"history.tables.columns.{name}", text) for name, text in table.columns.items()}
    with readable(path, frame, texts):
        events, left_out, breaches = _counted(frame, rules, aside)
    findings, failed = [], []
    for broken in breaches:
        rule = broken.rule
        example = f"{broken.shown} of user {broken.user!r}" if rule.shown else f"of user {broken.user!r}"
        text = f"history.tables: {rule.subject}: {broken.events} of {events} events {rule.wrong}, e.g. {example}."
        fix = _unit(broken, events, table, contract, now) if rule.check == "time_range" else rule.fix
        if rule.policy == "error":
            leave = "" if rule.check == "calendar" else f" `checks.{rule.check}: quarantine` leaves such events out."
            failed.append(f"{path}: {text} {fix}{leave}")
            continue
        message = f"{table.path}: {text} {'They were left out.' if rule.policy == 'quarantine' else fix}"
        findings.append(Finding(rule.check, rule.policy, rule.column, broken.events, events, example, message))
    if failed:
        raise DataError("\n".join(failed))
    if left_out > most * events:
        reasons = " ".join(finding.message for finding in findings if finding.policy == "quarantine")
        raise DataError(
            f"{path}: {left_out} of {events} events ({left_out / events:.2%}) would be left out, more than "
            f"checks.max_quarantine {most:g} allows. {reasons} Correct the export, or raise the limit."
        )
    kept = frame.filter(~aside) if left_out else frame
    if not events:
        # Of text without a line no type is known.
        kept = kept.with_columns(pl.exclude(TIME).cast(pl.Null))
    return kept.drop(RAW_TIME), findings


def _counted(frame: pl.LazyFrame, rules: list[_Rule], aside: pl.Expr) -> tuple[int, int, list[_Broken]]:
    """Events in all, those to leave out, and for each rule that some event breaks how many do, with the first.

    Nulls of the events' own columns are counted, to no end but that each file is read to its own, as a build reads it.
    """
    wanted = [pl.len().alias("events"), aside.sum().alias("aside")]
    for i, rule in enumerate(rules):
        firsts = {"user": USER, "shown": rule.shown or USER}
        wanted.append(rule.broken.sum().alias(f"broken {i}"))
        wanted += [pl.col(key).filter(rule.broken).first().alias(f"{name} {i}") for name, key in firsts.items()]
    wanted += [pl.col(name).null_count() for name in frame.collect_schema().names() if name.startswith(HISTORY)]
    found: dict[str, Any] = frame.select(wanted).collect(engine="streaming").row(0, named=True)
    broken = [
        _Broken(rule, found[f"broken {i}"], found[f"user {i}"], found[f"shown {i}"])
        for i, rule in enumerate(rules)
        if found[f"broken {i}"]
    ]
    return found["events"], found["aside"], broken


def _rules(schema: pl.Schema, table: HistoryTable, contract: Contract, now: datetime) -> Iterator[_Rule]:
    checks = contract.checks
    names = {USER: table.user, ITEM: table.item, TIME: table.time}
    for key, name in names.items():
        yield _Rule("null", checks.null, name, f"column {name!r}", pl.col(key).is_not_null(), "are null",
                    "Remove or fill them in the export.")  # fmt: skip
    for key, name in ((USER, table.user), (ITEM, table.item)):
        if schema[key].is_signed_integer():
            yield _Rule("negative_id", checks.negative_id, name, f"column {name!r}", pl.col(key) >= 0, "are below 0",
                        "No request can name such an id; number the ids from 0 in the export.", key)  # fmt: skip
    first, last = plausible(contract, now)
    subject, time = f"time column {table.time!r}", pl.col(TIME)
    in_unit = f" when read in {table.time_unit!r}" if schema[RAW_TIME].is_integer() else ""
    held = time.is_between(FIRST_TIME, LAST_TIME, closed="none")
    inside = time.is_between(first, last)
    yield _Rule("time_range", checks.time_range, table.time, subject,
                inside | ~held if checks.time_range == "warn" else inside,
                f"lie outside {day_of(first)} to {day_of(last)}{in_unit}",
                "Correct them in the export, or move checks.earliest and checks.latest.", RAW_TIME)  # fmt: skip
    if checks.time_range == "warn":
        # No calendar holds these, so that no later stage could tell their day.
        yield _Rule("calendar", "error", table.time, subject, held, f"leave the years 1 to 9999{in_unit}",
                    "Correct the column, or the table's time_unit.", RAW_TIME)  # fmt: skip


def _unit(broken: _Broken, events: int, table: HistoryTable, contract: Contract, now: datetime) -> str:
    """The way out of times out of range: the unit in which they are not."""
    first, last = plausible(contract, now)
    if not isinstance(broken.shown, int):
        return broken.rule.fix
    units = [unit for unit, factor in MICROSECONDS.items() if first <= broken.shown * factor <= last]
    if not units:
        return f"{broken.rule.fix} The table's time_unit is {table.time_unit!r}."
    if broken.events * 2 > events:
        return f"Set its time_unit to {units[0]!r}."
    return f"Its unit is {units[0]!r}, not {table.time_unit!r}: write all times in one unit."
