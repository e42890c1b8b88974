"""The log's rows against the contract's checks: each broken check refuses the log, leaves rows out, or warns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl

from features.checks.group_rules import EventKeys, IdCounts, crowds, later_copies, repeats, unlisted_ids
from features.checks.messages import with_example
from features.checks.quarantine import QUARANTINE, quarantine
from features.checks.row_rules import RowRules, Violation, label_name, row_rules
from features.chunk import CONTEXT, EVENT, GIVEN, HISTORY, ITEM, LABEL, LABELS, REQUEST, TIME, USER, WEIGHT, Values
from features.contract.contract import Contract
from features.contract.log import CapPolicy, Format
from features.errors import DataError, error_prefix
from features.sources.keys import canonical
from features.sources.log import Unchecked, chunks, expressions_of
from features.sources.served import SERVED_TIME
from features.sources.tables import has_no_row, readable, scan
from features.store.shuffle import shuffle_by_key

KEY_SHARDS = 32
SCRATCH = ".scratch-checks"


@dataclass(frozen=True)
class Finding:
    """What a check found, where it did not stop the build.

    Args:
        check: field of `contract.checks`; or `empty` (a column without a value) and `constant` (a label that is
            always the same), which only ever warn.
        policy: what the contract says of it.
        column: as the log calls it.
        rows: that break it.
        total: rows of the log.
        example: one of them, in words.
        message: all of it in one or two sentences. Without the log's path, for the same log elsewhere makes the same
            feature set.
    """

    check: str
    policy: CapPolicy
    column: str
    rows: int
    total: int
    example: str
    message: str


@dataclass(frozen=True)
class Checked:
    """The log without the rows in quarantine.

    Args:
        frame: columns and order of the log; labels are float32, null where the test file has none.
        rows: how many stay.
        findings: most rows first.
    """

    frame: pl.LazyFrame
    rows: int
    findings: tuple[Finding, ...] = ()


def check_log(
    log: Unchecked,
    contract: Contract,
    known_items: pl.Series | None,
    known_users: pl.Series | None,
    staging: Path,
    now: datetime | None = None,
) -> Checked:
    """Check every row of the log against the contract.

    One pass in bounded memory: a chunk, the distinct ids, and by way of a file 16 bytes a row. Rows that break a rule
    are looked up in a further pass; a clean log has none.

    Args:
        log: under fixed names; or some of its rows.
        contract: what the columns are, and the policy of each check.
        known_items: ids of the item table, None without one.
        known_users: ids of the user table, None without one.
        staging: folder of the feature set that is being built; gets `quarantine.parquet` where rows are put aside.
        now: time of the build, with its zone; default the present.

    Raises:
        DataError: a column of the wrong type, an empty log, rows that break a check whose policy is `error` (all such
            checks in one error, most rows first), or more rows to put aside than `checks.max_quarantine`.
        ConfigError: `checks.ranges` names a column that is not read.
    """
    now = now or datetime.now(UTC)
    frame, path = log.frame, log.path
    try:
        _check_types(frame, path, contract)
    except DataError:
        # Text without a line has columns of no type.
        if has_no_row(frame):
            raise _empty(log, contract) from None
        raise
    _check_zones(contract)
    with error_prefix(path):
        rules = RowRules(row_rules(frame.collect_schema(), contract, now, log.unlabelled))
    log_scan = _LogScan(frame, contract, rules)
    with readable(path, frame, expressions_of(contract)):
        copies = log_scan.through(log, staging)
        with error_prefix(path):
            violations = [
                *rules.violations(),
                *repeats(copies, contract),
                *unlisted_ids(frame, contract, log_scan.counts, {ITEM: known_items, USER: known_users}),
                *(crowds(frame, contract, log_scan.counts) if contract.interactions.time is not None else ()),
            ]
        shown = [with_example(violation, frame, path, contract, log_scan.rows, now) for violation in violations]
        violations = sorted(shown, key=lambda violation: -violation.rows)
        _refuse(path, violations, log_scan.rows)
        aside = [violation for violation in violations if violation.policy in ("quarantine", "cap")]
        gone = 0
        kept = frame
        if aside:
            kept, gone = quarantine(frame, path, contract, aside, log_scan.rows, staging)
    findings = [_finding(violation, log_scan.rows) for violation in violations] + list(log_scan.remarks())
    return Checked(kept.with_columns(pl.col(LABEL).cast(pl.Float32)), log_scan.rows - gone, tuple(findings))


class _LogScan:
    """One pass over the log, and what it counted."""

    def __init__(self, frame: pl.LazyFrame, contract: Contract, rules: RowRules) -> None:
        self._contract = contract
        self._rules = rules
        self._ids = {USER: IdCounts(), ITEM: IdCounts()}
        self._nulls: dict[str, int] = {}
        self._labels: set[float] = set()
        self.rows = 0
        whole = rules.keys | {USER, ITEM, TIME, LABEL}
        # Of the other columns only nulls are counted, which also reads each file to its end.
        names = frame.collect_schema().names()
        self._frame = frame.select(pl.col(name) if name in whole else pl.col(name).is_null() for name in names)
        self._flags = [name for name in names if name not in whole]

    @property
    def counts(self) -> dict[str, pl.DataFrame]:
        """Of `USER` and `ITEM`: columns `id` and `len`."""
        return {key: ids.counts() for key, ids in self._ids.items()}

    def through(self, log: Unchecked, staging: Path) -> list[np.ndarray]:
        """Look at every row; returns the numbers of the rows that repeat an earlier one.

        Raises:
            DataError: the log is empty.
        """
        if self._contract.interactions.time is None:
            # Without times a second row of the same user and item is no repeat.
            for _ in self._keys(log):
                pass
            return []
        shards = shuffle_by_key(self._keys(log), "key", KEY_SHARDS, staging / SCRATCH)
        return [later_copies(shard) for shard in shards]

    def remarks(self) -> Iterator[Finding]:
        """On columns as a whole."""
        total = self.rows
        for key in self._nulls:
            if self._nulls[key] == total:
                column = _name_of(key, self._contract)
                message = f"column {column!r}: all {total} rows are null. It says nothing; leave it out."
                yield Finding("empty", "warn", column, total, total, "null", message)
        name = label_name(self._contract)
        if name is not None and self._labels in ({0.0}, {1.0}):
            value = f"{self._labels.pop():g}"
            message = (
                f"label {name!r}: is {value} in all {total} rows. There is nothing to learn; a log of "
                "positives alone needs interactions.negatives."
            )
            yield Finding("constant", "warn", name, total, total, value, message)

    def _keys(self, log: Unchecked) -> Iterator[dict[str, Values]]:
        keys = EventKeys()
        for chunk in chunks(self._frame):
            self._rules.add(chunk, self.rows)
            for key, ids in self._ids.items():
                ids.add(chunk[key])
            for name in chunk.columns:
                nulls = int(chunk[name].sum()) if name in self._flags else chunk[name].null_count()
                self._nulls[name] = self._nulls.get(name, 0) + nulls
            if len(self._labels) < 2:
                label = chunk[LABEL].cast(pl.Float64)
                self._labels |= {value for value in (0.0, 1.0) if (label == value).any()}
            yield keys.of(chunk, self.rows)
            self.rows += chunk.height
        if not self.rows:
            raise _empty(log, self._contract)


def _empty(log: Unchecked, contract: Contract) -> DataError:
    if (served := contract.interactions.served) is not None:
        return DataError(
            f"{log.path}: none of its answers makes a row: one needs a user and an item that it showed, and must be "
            f"older than interactions.served.wait ({served.wait // 1_000_000} s) at the end of the log. Build again "
            "when there are such answers."
        )
    if log.as_of is None:
        return DataError(f"{log.path}: the log is empty (0 rows). Check the export that wrote it.")
    return DataError(
        f"{log.path}: the log has no row on or before {log.as_of} (0 rows). Correct --as-of, or check the export that "
        "wrote it."
    )


def _refuse(path: str, violations: Sequence[Violation], rows: int) -> None:
    failed = [f"{path}: {_message(violation, rows)}" for violation in violations if violation.policy == "error"]
    if failed:
        raise DataError("\n".join(failed))


def _finding(violation: Violation, rows: int) -> Finding:
    return Finding(
        check=violation.check,
        policy=violation.policy,
        column=violation.column,
        rows=violation.rows,
        total=rows,
        example=str(violation.example),
        message=_message(violation, rows),
    )


def _message(violation: Violation, rows: int) -> str:
    text = f"{violation.subject}: {violation.rows} of {rows} rows {violation.wrong}, e.g. {violation.example}."
    if violation.policy in ("quarantine", "cap"):
        return f"{text} They were put aside in {QUARANTINE}."
    text = f"{text} {violation.fix}"
    if violation.policy == "error" and violation.check != "calendar":
        text += f" `checks.{violation.check}: quarantine` puts such rows aside."
    return text


def _name_of(key: str, contract: Contract) -> str:
    """What the log calls a column of the frame."""
    log = contract.interactions
    direct = {
        USER: log.user,
        ITEM: log.item,
        TIME: log.time,
        LABEL: label_name(contract),
        WEIGHT: log.weight,
        REQUEST: log.request,
    }
    if found := direct.get(key):
        return found
    if key == GIVEN and contract.history.given is not None:
        return contract.history.given.column
    name = key.partition(".")[2]
    specs = log.context if key.startswith(CONTEXT) else contract.history.columns
    if key.startswith((CONTEXT, HISTORY)) and name in specs:
        return specs[name].source or name
    return name or key


def _check_types(frame: pl.LazyFrame, path: str, contract: Contract) -> None:
    schema = frame.collect_schema()
    log = contract.interactions
    for key, name in ((USER, log.user), (ITEM, log.item)):
        with error_prefix(path):
            canonical(pl.Series(name, [], dtype=schema[key]))
        if schema[key].is_float():
            raise DataError(f"{path}: column {name!r} holds {schema[key]}, ids must be whole numbers or text. Cast it.")
    targets = {LABEL: f"label {log.label!r}"}
    targets |= {LABELS + name: f"interactions.labels.{name} {text!r}" for name, text in log.labels.items()}
    for key, name in targets.items():
        if not (schema[key].is_numeric() or schema[key] in (pl.Boolean, pl.Null)):
            raise DataError(f"{path}: {name} is {schema[key]}, expected 0/1 or a condition such as `rating >= 4`.")
    if schema[EVENT] != pl.Boolean:
        raise DataError(
            f"{path}: history.events {contract.history.events!r} is {schema[EVENT]}, expected a condition such as "
            "`label == 1`."
        )
    if log.weight and not (schema[WEIGHT].is_numeric() or schema[WEIGHT] == pl.Null):
        raise DataError(f"{path}: weight column {log.weight!r} holds {schema[WEIGHT]}, expected numbers.")


def _check_zones(contract: Contract) -> None:
    """Times with and without a zone do not compare: those without would be read as UTC, hours off."""
    log, split = contract.interactions, contract.split
    # A served log has its own name for the time, whatever the contract calls it.
    own = log.time if log.served is None else SERVED_TIME
    sources: list[tuple[str, Format, str | None]] = [(log.path, log.format, own)]
    if log.served is not None:
        sources.append((log.served.outcomes, log.served.format, log.served.time))
    if split.by == "files":
        sources += [(str(path), log.format, log.time) for path in (split.valid, split.test)]
    sources += [(table.path, table.format, table.time) for table in contract.history.tables]
    sources += [(table.path, table.format, table.valid_from) for table in (contract.items, contract.users) if table]
    timed = [(contract.resolve(name), form, column) for name, form, column in sources if column is not None]
    seen: dict[bool, tuple[str, str]] = {}
    for path, form, column in timed if len(timed) > 1 else ():
        held = scan(path, form).collect_schema().get(column)
        dtype = held.inner if isinstance(held, pl.List) else held
        if isinstance(dtype, pl.Datetime):
            seen.setdefault(dtype.time_zone is not None, (path, column))
    if len(seen) == 2:
        (aware, column), (naive, other) = seen[True], seen[False]
        raise DataError(
            f"{naive}: time column {other!r} has no time zone, that of {aware} ({column!r}) has one. Write both in "
            "UTC, with the zone."
        )
