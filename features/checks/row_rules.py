"""What one row of the log must be: a contract's rules as expressions, run over a chunk at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
import polars as pl

from features.calendar import DAY, FIRST_TIME, LAST_TIME, day_of, first_instant, microseconds_of
from features.chunk import CONTEXT, HISTORY, ITEM, LABEL, LABELS, SPLIT, TIME, USER, WEIGHT
from features.contract.columns import Buckets, Gap, Numeric, Residual
from features.contract.contract import Contract
from features.contract.log import CapPolicy, Policy
from features.contract.settings import unknown_key
from features.errors import ConfigError, DataError

ROW = "_row_number"


@dataclass(frozen=True)
class Rule:
    """One thing that is true of a sound row.

    Args:
        check: the field of `contract.checks` that says what happens otherwise.
        policy: what it says.
        key: column of the frame that is looked at.
        column: what the log calls it.
        valid: true of a sound row; null counts as true.
        wrong: what the broken rows are, after "3 of 120 rows".
        fix: a sentence on what to do.
        subject: the column with what it is, for the message.
    """

    check: str
    policy: Policy
    key: str
    column: str
    valid: pl.Expr
    wrong: str
    fix: str
    subject: str


@dataclass(frozen=True)
class Violation:
    """Rows that break one rule.

    Args:
        check, policy, column, wrong, fix, subject: as of the rule.
        rows: how many.
        first: number of the first of them; the log's first row is 0.
        places_N: numbers of all of them, ascending, where they are to be put aside; else empty.
        key: column of the frame whose value is the example; None where `example` says all.
        example: text of one of them, if known already.
    """

    check: str
    policy: CapPolicy
    column: str
    wrong: str
    fix: str
    subject: str
    rows: int
    first: int
    places_N: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    key: str | None = None
    example: str | None = None


class RowRules:
    """Counts the rows that break each rule, a chunk at a time.

    Memory: that of one chunk, and 8 bytes for each row that is to be put aside.
    """

    def __init__(self, rules: Iterable[Rule]) -> None:
        self._rules = {f"{rule.check} {rule.key}": rule for rule in rules}
        self._count = dict.fromkeys(self._rules, 0)
        self._first: dict[str, int] = {}
        self._places: dict[str, list[np.ndarray]] = {name: [] for name in self._rules}

    @property
    def keys(self) -> set[str]:
        """Columns that the rules look at."""
        return {name for rule in self._rules.values() for name in rule.valid.meta.root_names()}

    def add(self, chunk: pl.DataFrame, first: int) -> None:
        """Look at the next rows, whose first has the number `first`."""
        broken = chunk.select((~rule.valid).fill_null(False).alias(name) for name, rule in self._rules.items())
        for column in broken:
            places = column.arg_true().to_numpy().astype(np.int64) + first
            if not len(places):
                continue
            name = column.name
            self._first.setdefault(name, int(places[0]))
            self._count[name] += len(places)
            if self._rules[name].policy == "quarantine":
                self._places[name].append(places)

    def violations(self) -> Iterator[Violation]:
        """One for each rule that some row broke."""
        for name, rule in self._rules.items():
            if not self._count[name]:
                continue
            yield Violation(
                rule.check,
                rule.policy,
                rule.column,
                rule.wrong,
                rule.fix,
                rule.subject,
                self._count[name],
                self._first[name],
                np.concatenate([np.empty(0, np.int64), *self._places[name]]),
                rule.key,
            )


def numbered(frame: pl.LazyFrame, first: int = 0) -> pl.LazyFrame:
    """The frame with the number of each row, int64, in column `ROW`; it streams.

    Not `with_row_index`, whose numbers end at 2^32.
    """
    ones = frame.with_columns(pl.lit(1, pl.Int64).alias(ROW))
    return ones.with_columns(pl.col(ROW).cum_sum() + (first - 1))


def row_rules(schema: pl.Schema, contract: Contract, now: datetime, unlabelled: bool = False) -> list[Rule]:
    """The rules of a contract for a log of these columns.

    Args:
        schema: of the frame under fixed names.
        contract: whose `checks` say what happens to a row that breaks one.
        now: the time of the build; a day later is too late unless `checks.latest` is given.
        unlabelled: the test file has no labels.

    Raises:
        ConfigError: `checks.ranges` names a column that the contract does not read.
        DataError: a column of `checks.ranges` holds no numbers.
    """
    log, checks = contract.interactions, contract.checks
    named = {USER: log.user, ITEM: log.item, TIME: log.time, LABEL: label_name(contract)}
    there = {key: pl.col(key).is_not_null() for key in named}
    if unlabelled:
        there[LABEL] |= pl.col(SPLIT) == 2
    rules = [
        Rule("null", checks.null, key, name, there[key], "are null",
             "Remove or fill them in the export.", f"column {name!r}")
        for key, name in named.items() if name is not None
    ]  # fmt: skip
    if schema[LABEL] != pl.Boolean and named[LABEL] is not None:
        rules.append(
            Rule("label", checks.label, LABEL, str(named[LABEL]), pl.col(LABEL).cast(pl.Float64).is_in([0.0, 1.0]),
                 "are neither 0 nor 1", "Write it as a condition, e.g. `rating >= 4`.", f"label {named[LABEL]!r}")
        )  # fmt: skip
    rules += [
        Rule("label", checks.label, LABELS + name, f"interactions.labels.{name}",
             pl.col(LABELS + name).cast(pl.Float64).is_in([0.0, 1.0]) | pl.col(LABELS + name).is_null(),
             "are neither 0 nor 1 nor null", "Write it as a condition, e.g. `rating >= 4`.",
             f"interactions.labels.{name} {text!r}")
        for name, text in log.labels.items() if schema[LABELS + name] != pl.Boolean
    ]  # fmt: skip
    if log.weight:
        # As float32, the type it is stored and trained with.
        weight = pl.col(WEIGHT).cast(pl.Float32, strict=False)
        rules.append(
            Rule("weight", checks.weight, WEIGHT, log.weight, (weight >= 0) & weight.is_finite(),
                 "are negative or not finite",
                 "Correct them in the export; a row that must not count has weight 0.", f"weight column {log.weight!r}")
        )  # fmt: skip
    for key, name in ((USER, log.user), (ITEM, log.item)):
        if schema[key].is_signed_integer():
            rules.append(
                Rule("negative_id", checks.negative_id, key, name, pl.col(key) >= 0, "are negative ids",
                     "No request can name such an id; number the ids from 0 in the export.", f"column {name!r}")
            )  # fmt: skip
    if log.time is not None:
        rules += _time_rules(contract, now)
    return rules + _range_rules(schema, contract)


def label_name(contract: Contract) -> str | None:
    """What messages call the label; None where every row is a positive by declaration."""
    log = contract.interactions
    if log.served is not None:
        return log.served.label or "clicked"
    if log.label is None and log.candidates is not None:
        return log.candidates.clicked or log.candidates.column
    return log.label


def plausible(contract: Contract, now: datetime) -> tuple[int, int]:
    """First and last µs that a row's time may have, always within the years 1 to 9999."""
    checks = contract.checks
    last = microseconds_of(now) + DAY if checks.latest is None else first_instant(checks.latest) + DAY - 1
    return max(first_instant(checks.earliest), FIRST_TIME + 1), min(last, LAST_TIME - 1)


def _time_rules(contract: Contract, now: datetime) -> list[Rule]:
    log, policy = contract.interactions, contract.checks.time_range
    first, last = plausible(contract, now)
    name, subject = str(log.time), f"time column {log.time!r}"
    fix = "Correct them in the export, or move checks.earliest and checks.latest."
    between = f"lie outside {day_of(first)} to {day_of(last)}"
    rules = [Rule("time_range", policy, TIME, name, pl.col(TIME).is_between(first, last), between, fix, subject)]
    if policy == "warn":
        # No calendar holds these, so that no later stage could tell their day.
        held = pl.col(TIME).is_between(FIRST_TIME, LAST_TIME, closed="none")
        rules[0] = Rule("time_range", policy, TIME, name, rules[0].valid | ~held, rules[0].wrong, fix, subject)
        rules.append(Rule("calendar", "error", TIME, name, held, "leave the years 1 to 9999", fix, subject))
    return rules


def _range_rules(schema: pl.Schema, contract: Contract) -> list[Rule]:
    checks, columns = contract.checks, _columns_of_the_log(contract)
    rules = []
    for name, (least, greatest) in checks.ranges.items():
        if name not in columns:
            raise ConfigError(
                f"checks.ranges: the contract reads no column {name!r} of the log. {unknown_key(name, list(columns))}"
            )
        key = columns[name]
        if not (schema[key].is_numeric() or schema[key] == pl.Null):
            raise DataError(f"column {name!r} holds {schema[key]}, but checks.ranges gives it a range. Cast it.")
        value = pl.col(key)
        inside = value.is_between(least, greatest)
        if schema[key].is_float():
            inside = inside | value.is_nan()
        rules.append(
            Rule("range", checks.range, key, name, inside, f"lie outside {least:g} to {greatest:g}",
                 "Correct them in the export, or widen checks.ranges.", f"column {name!r}")
        )  # fmt: skip
    numbers = [
        (
            prefix + name,
            spec.source or name,
            "count as missing" if isinstance(spec, Numeric) else "are in an outer bucket",
        )
        for prefix, specs in ((CONTEXT, contract.interactions.context), (HISTORY, contract.history.columns))
        for name, spec in specs.items()
        if isinstance(spec, Numeric | Buckets)
    ]
    for key, name, place in numbers:
        if schema[key].is_float() and name not in checks.ranges:
            rules.append(
                Rule("range", checks.range, key, name, ~pl.col(key).is_infinite(), "are infinite",
                     f"They {place}; correct them in the export.", f"column {name!r}")
            )  # fmt: skip
    return rules


def _columns_of_the_log(contract: Contract) -> dict[str, str]:
    """The log's columns that are read as they are, and what the frame calls them."""
    log = contract.interactions
    found = {log.user: USER, log.item: ITEM}
    if log.weight:
        found[log.weight] = WEIGHT
    for prefix, specs in ((HISTORY, contract.history.columns), (CONTEXT, log.context)):
        for name, spec in specs.items():
            if not isinstance(spec, Gap | Residual):
                found[spec.source or name] = prefix + name
    return found
