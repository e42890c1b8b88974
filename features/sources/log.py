"""The behaviour log as one lazy table under fixed names, whatever shape it was recorded in."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import polars as pl

from features.calendar import day_of, require_date
from features.chunk import (
    CONTEXT,
    EVENT,
    GIVEN,
    HISTORY,
    ITEM,
    LABEL,
    LABELS,
    NUMBERS,
    RAW,
    RAW_TIME,
    REQUEST,
    SPLIT,
    TIME,
    USER,
    WEIGHT,
)
from features.contract.columns import Gap, Residual
from features.contract.contract import Contract
from features.contract.labels import CLICKED_NAMES
from features.contract.log import HistoryTable, PrecomputedHistory
from features.errors import DataError, error_prefix
from features.sources.impressions import exploded, exploded_unlabelled, tells_clicks
from features.sources.keys import canonical
from features.sources.labelled import Labelled, Lacking, columns_in
from features.sources.served import served_rows
from features.sources.tables import TEXTS, expression, named, readable, refuse_not_common, require_columns, scan
from features.sources.times import end_of, microseconds

ROWS_A_CHUNK = 500_000


@dataclass(frozen=True)
class Log:
    """The log with fixed column names; values are raw.

    Args:
        frame: lazily `_user _item _time` (µs since 1970) `_label _event` and, where declared, `_weight _request
            _given _split _context.<name> _history.<name> _labels.<name> _numbers.<counter>`, one row a training row.
            Labels, and numbers made of them, are null in the rows of a test file without them.
        path: of its file, for messages.
        rows: how many.
        earlier: further events that are no rows: lazily `_user _item _time _history.<name>`, one frame a table.
    """

    frame: pl.LazyFrame
    path: str
    rows: int
    earlier: tuple[pl.LazyFrame, ...] = ()


@dataclass(frozen=True)
class Unchecked:
    """The log under its fixed names, its rows not looked at yet.

    Args:
        frame: as in `Log`; the label is as the log has it.
        path: for messages.
        unlabelled: the test file has no labels: they are null in all of its rows.
        as_of: the day after which rows were left out, for messages.
    """

    frame: pl.LazyFrame
    path: str
    unlabelled: bool = False
    as_of: str | None = None


def open_log(contract: Contract, as_of: str | None = None, raw_columns: Collection[str] = ()) -> Unchecked:
    """The log, in whatever shape it was recorded.

    Args:
        contract: what to read and how.
        as_of: leave out what came after this day (UTC).
        raw_columns: that are wanted too, as `_raw.<name>`; names that the log does not have are passed over.

    Raises:
        DataError: missing file or column, an expression that is none, a column that holds no times.
    """
    path = contract.resolve(contract.interactions.path)
    unlabelled = False
    if contract.split.by != "files":
        frame = _under_fixed_names(_raw(contract, path, as_of), path, contract, raw_columns=raw_columns)
    else:
        valid, test = contract.resolve(str(contract.split.valid)), contract.resolve(str(contract.split.test))
        labelled = [(_raw(contract, file), file) for file in (path, valid)]
        parts = [_under_fixed_names(raw, file, contract, raw_columns=raw_columns) for raw, file in labelled]
        raw, lacking = _test_file(contract, test, labelled[0][0])
        parts.append(_under_fixed_names(raw, test, contract, lacking, raw_columns))
        unlabelled = LABEL in lacking.labels
        numbered = [part.with_columns(pl.lit(number, pl.Int8).alias(SPLIT)) for number, part in enumerate(parts)]
        frame = pl.concat(numbered, how="vertical_relaxed")
    if as_of is not None:
        # Rows without a time stay: the checks report them.
        frame = frame.filter((pl.col(TIME) < end_of(as_of)) | pl.col(TIME).is_null())
    return Unchecked(frame, path, unlabelled, as_of)


def time_span(contract: Contract, path: str) -> tuple[int, int] | None:
    """First and last time of one file of the log, µs since 1970; None where no row has one.

    Its times alone are read: a column that is empty in this file has not the type that the whole log has.

    Raises:
        DataError: no such column, or one that holds no times.
    """
    log = contract.interactions
    assert log.time is not None, "a log that is split by days has times"
    raw = scan(path, log.format)
    require_columns(raw, path, [log.time])
    if not raw.select(pl.col(log.time).is_not_null().any()).collect(engine="streaming").item():
        return None
    time = microseconds(raw, path, log.time, log.time_unit, log.time_format)
    first, last = raw.select(time.min().alias("first"), time.max().alias("last")).collect(engine="streaming").row(0)
    return None if first is None else (first, last)


def newest_day(contract: Contract, as_of: str) -> str:
    """The day (UTC, ISO) of the newest row on or before `as_of`, which is returned where there is none.

    Raises:
        ConfigError: `as_of` is no date.
        DataError: as `open_log`.
    """
    require_date(as_of)
    newest = open_log(contract, as_of).frame.select(pl.col(TIME).max()).collect(engine="streaming").item()
    return as_of if newest is None else day_of(newest).isoformat()


def log_columns(contract: Contract) -> pl.Schema:
    """The raw log's columns and their types; of a log split by files, those of the training file."""
    return _raw(contract, contract.resolve(contract.interactions.path)).collect_schema()


def event_tables(contract: Contract) -> tuple[pl.LazyFrame, ...]:
    """The events of `history.tables` under the log's fixed names, one frame a table, not looked at yet.

    Beside the time stands `_raw_time`, as the table has it.

    Raises:
        DataError: missing file or column, lists of unequal length, a column that holds no times.
    """
    return tuple(_events_of(contract, table) for table in contract.history.tables)


def expressions_of(contract: Contract) -> dict[str, str]:
    """What messages call the expressions of the log, by the log's fixed names."""
    log, history = contract.interactions, contract.history
    carried = {name: spec for name, spec in history.columns.items() if not isinstance(spec, Gap | Residual)}
    return {
        LABEL: named("interactions.label", log.label or ""),
        EVENT: named("history.events", history.events),
        **{
            CONTEXT + name: named(f"interactions.context.{name}", spec.source or name)
            for name, spec in log.context.items()
        },
        **{HISTORY + name: named(f"history.columns.{name}", spec.source or name) for name, spec in carried.items()},
        **{LABELS + name: named(f"interactions.labels.{name}", text) for name, text in log.labels.items()},
        **{
            key: named(f"counters.{key.removeprefix(NUMBERS)}.number", text)
            for key, text in _counted_numbers(contract).items()
        },
    }


def distinct(log: Log, key: str, name: str) -> pl.Series:
    """The distinct values of a column as sorted keys. Raises DataError naming the log's column `name`."""
    with error_prefix(log.path):
        return canonical(value_counts(log.frame, key)["value"].rename(name)).sort()


def value_counts(frame: pl.LazyFrame, column: str) -> pl.DataFrame:
    """How often each distinct value of a column occurs: columns `value` (sorted, without null) and `len`."""
    counts = frame.group_by(pl.col(column).alias("value")).len().filter(pl.col("value").is_not_null())
    return counts.collect(engine="streaming").sort("value")


def chunks(frame: pl.LazyFrame, rows: int | None = None) -> Iterator[pl.DataFrame]:
    """The frame's rows in order, a bounded number at a time.

    Args:
        frame: what to read.
        rows: how many there are, if known; a small frame is read at once.
    """
    if rows is not None and rows <= ROWS_A_CHUNK:
        yield frame.collect()
        return
    yield from frame.collect_batches(chunk_size=ROWS_A_CHUNK, engine="streaming", maintain_order=True)


def _raw(contract: Contract, path: str, as_of: str | None = None) -> pl.LazyFrame:
    log = contract.interactions
    if log.served is not None:
        return served_rows(contract, path, as_of)
    raw = scan(path, log.format)
    if log.candidates is None:
        return raw
    return exploded(raw, path, log.candidates, log.item)


def _test_file(contract: Contract, path: str, train: pl.LazyFrame) -> tuple[pl.LazyFrame, Lacking]:
    """The test file, and what it has not of its labels.

    A label is unknown where the file lacks a column that the training file has and the label is made of, or where it
    does not say what was clicked.
    """
    log = contract.interactions
    raw, clicks, unknown = scan(path, log.format), True, set()
    train_schema, own = train.collect_schema(), raw.collect_schema().names()
    if log.candidates is not None:
        clicks = tells_clicks(raw, path, log.candidates)
        raw = (exploded if clicks else exploded_unlabelled)(raw, path, log.candidates, log.item)
        own = raw.collect_schema().names()
    lacking: dict[str, pl.DataType] = {}
    if log.candidates is not None and not clicks:
        unknown.add(LABEL)
        lacking |= {name: train_schema[name] for name in (log.candidates.clicked,) if name}
    targets = {LABELS + name: text for name, text in log.labels.items()} | _counted_numbers(contract)
    if log.label is not None:
        targets[LABEL] = log.label
    for key, text in targets.items():
        roots = columns_in(text, train_schema)
        missing = {name: train_schema[name] for name in roots if name in train_schema and name not in own}
        refuse_not_common(path, missing)
        # What is made of the click is as unknown as the click.
        if missing or (not clicks and roots.intersection(CLICKED_NAMES)):
            unknown.add(key)
        lacking |= missing
    return raw, Lacking(frozenset(unknown), lacking)


def _under_fixed_names(
    raw: pl.LazyFrame,
    path: str,
    contract: Contract,
    lacking: Lacking | None = None,
    raw_columns: Collection[str] = (),
) -> pl.LazyFrame:
    """Select what the contract declares; labels that are lacking are null."""
    lacking = lacking or Lacking()
    log = contract.interactions
    require_columns(raw, path, [name for name in (log.user, log.item, log.time, log.weight, log.request) if name])
    labelled = Labelled(raw, path, contract, lacking)
    carried = {name: spec for name, spec in contract.history.columns.items() if not isinstance(spec, Gap | Residual)}
    columns: dict[str, pl.Expr] = {
        USER: pl.col(log.user),
        ITEM: pl.col(log.item),
        TIME: microseconds(raw, path, log.time, log.time_unit, log.time_format) if log.time else pl.lit(0, pl.Int64),
        LABEL: pl.col(LABEL),
        EVENT: labelled.is_event(contract.history.events),
        **{
            CONTEXT + name: expression(raw, path, f"interactions.context.{name}", spec.source or name)
            for name, spec in log.context.items()
        },
        **{HISTORY + name: labelled.event_column(name, spec.source or name) for name, spec in carried.items()},
        **{
            LABELS + name: pl.lit(None, pl.Int8)
            if LABELS + name in lacking.labels
            else labelled.expression(f"interactions.labels.{name}", text)
            for name, text in log.labels.items()
        },
        **{
            key: pl.lit(None, pl.Float64)
            if key in lacking.labels
            else labelled.expression(f"counters.{key.removeprefix(NUMBERS)}.number", text)
            for key, text in _counted_numbers(contract).items()
        },
    }
    if log.weight:
        columns[WEIGHT] = pl.col(log.weight)
    if log.request:
        columns[REQUEST] = pl.col(log.request)
    if contract.history.given:
        columns[GIVEN] = _given(raw, path, contract.history.given, log.item)
    there = labelled.frame.collect_schema().names() if raw_columns else []
    return labelled.frame.select(**columns, **{RAW + name: pl.col(name) for name in there if name in raw_columns})


def _counted_numbers(contract: Contract) -> dict[str, str]:
    """What counters add up, by its fixed name."""
    return {NUMBERS + name: counter.number for name, counter in contract.counters.items() if counter.number is not None}


def _given(raw: pl.LazyFrame, path: str, spec: PrecomputedHistory, item: str) -> pl.Expr:
    require_columns(raw, path, [spec.column])
    schema = raw.collect_schema()
    column, dtype = pl.col(spec.column), schema[spec.column]
    if dtype == pl.String:
        if spec.separator is None:
            raise DataError(
                f"{path}: history column {spec.column!r} is text. Name what separates its ids: history.given.separator."
            )
        column = column.str.split(spec.separator).list.eval(pl.element().filter(pl.element() != ""))
        if schema[item].is_integer():
            column = _whole_numbers(raw, path, spec.column, column)
    elif dtype == pl.Null:
        column = column.cast(pl.List(schema[item]))
    elif isinstance(dtype, pl.Array):
        column = column.arr.to_list()
    elif not isinstance(dtype, pl.List):
        raise DataError(f"{path}: history column {spec.column!r} holds {dtype}, expected lists of ids or text.")
    if spec.padding is not None:
        _refuse_other_padding(raw.select(column), path, spec)
        column = column.list.eval(pl.element().filter(pl.element() != spec.padding))
    return column.list.drop_nulls()


def _whole_numbers(raw: pl.LazyFrame, path: str, name: str, lists: pl.Expr) -> pl.Expr:
    """Ids in text as the whole numbers that the log has them as, which a text file cannot write in lists."""
    number = pl.element().cast(pl.Int64, strict=False)
    ids = raw.select(lists.list.eval(pl.element().filter(number.is_null())).explode(empty_as_null=False).alias(name))
    with readable(path):
        wrong = ids.drop_nulls().select(pl.len(), pl.col(name).first().alias("example"))
        count, example = wrong.collect(engine="streaming").row(0)
    if count:
        raise DataError(
            f"{path}: history column {name!r}: {count} ids, e.g. {example!r}, are no whole numbers, but the items of "
            "the log are. Check history.given.separator, or write both with one type."
        )
    return lists.list.eval(number)


def _refuse_other_padding(lists: pl.LazyFrame, path: str, spec: PrecomputedHistory) -> None:
    (dtype,) = lists.collect_schema().dtypes()
    inner = dtype.inner if isinstance(dtype, pl.List) else None
    kinds = "text" if isinstance(spec.padding, str) else "a number", "text" if inner in TEXTS else "numbers"
    if inner not in (None, pl.Null) and (kinds[0] == "text") != (kinds[1] == "text"):
        raise DataError(
            f"{path}: history.given.padding {spec.padding!r} is {kinds[0]}, the ids of {spec.column!r} are {kinds[1]}. "
            "Write the padding as the column has it."
        )


def _events_of(contract: Contract, table: HistoryTable) -> pl.LazyFrame:
    path = contract.resolve(table.path)
    raw = scan(path, table.format)
    require_columns(raw, path, [table.user, table.item, table.time])
    schema = raw.collect_schema()
    if isinstance(schema[table.item], pl.List):
        if not isinstance(schema[table.time], pl.List):
            raise DataError(
                f"{path}: column {table.item!r} holds lists, and {table.time!r} holds {schema[table.time]}. Write a "
                "time for each event, as a list, or one row an event."
            )
        lists = [
            table.item,
            table.time,
            *(text for text in table.columns.values() if isinstance(schema.get(text), pl.List)),
        ]
        _equal_lengths(raw, path, lists)
        raw = raw.explode(list(dict.fromkeys(lists)), keep_nulls=False)
    columns: dict[str, pl.Expr] = {
        USER: pl.col(table.user),
        ITEM: pl.col(table.item),
        TIME: microseconds(raw, path, table.time, table.time_unit),
        RAW_TIME: pl.col(table.time),
    }
    for name, spec in contract.history.columns.items():
        if isinstance(spec, Gap | Residual):
            continue
        text = table.columns.get(name)
        known: pl.Expr = expression(raw, path, f"history.tables.columns.{name}", text) if text else pl.lit(None)
        columns[HISTORY + name] = known
    return raw.select(**columns)


def _equal_lengths(raw: pl.LazyFrame, path: str, lists: list[str]) -> None:
    first, *others = lists
    if not others:
        return
    lengths = {name: pl.col(name).list.len().fill_null(0) for name in lists}
    unequal = pl.any_horizontal(*(lengths[first] != lengths[name] for name in others))
    with readable(path):
        count: Any = raw.select(unequal.sum()).collect(engine="streaming").item()
    if count:
        raise DataError(
            f"{path}: in {count} rows the lists {', '.join(map(repr, lists))} are of unequal length. An event needs "
            "one entry in each; write the table again."
        )
