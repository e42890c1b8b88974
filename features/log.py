"""The behaviour log as one lazy table under fixed names, checked on its real rows before anything is built."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from features.contract import Contract, Interactions
from features.errors import DataError, named
from features.sources import readable, require_columns, scan
from features.vocabulary import canonical

USER, ITEM, TIME, LABEL, EVENT = "_user", "_item", "_time", "_label", "_event"
WEIGHT, REQUEST, WRONG_WEIGHT = "_weight", "_request", "_weight.wrong"
CONTEXT, HISTORY = "_context.", "_history."
# The years 1 and 9999, which calendars stop at, in µs since 1970.
FIRST_TIME, LAST_TIME = -62_135_596_800_000_000, 253_402_300_800_000_000
MICROSECONDS = {"s": 1_000_000, "ms": 1_000, "us": 1}


@dataclass(frozen=True)
class Log:
    """The log with fixed column names.

    Args:
        frame: lazily `_user _item _time` (µs since 1970) `_label _event` and, where declared, `_weight _request
            _context.<name> _history.<name>`; values are raw.
        path: of its file, for messages.
        rows: how many.
        times: `_time` of every row in the log's order, int64 [rows].
    """

    frame: pl.LazyFrame
    path: str
    rows: int
    times: np.ndarray


def open_log(contract: Contract) -> Log:
    """Open and check the log.

    Raises:
        DataError: missing file or column, an expression that is none, a wrong type, null ids or times, a
            label outside {0, 1}, a weight that is negative or not finite, an empty log.
    """
    log = contract.interactions
    path = contract.resolve(log.path)
    raw = scan(path)
    named = [log.user, log.item, log.time, log.weight, log.request, *log.context]
    require_columns(raw, path, [name for name in named if name])
    label = _expression(raw, path, "interactions.label", log.label)
    # Event filter and event columns may name the computed label, which is not a column of the log.
    raw = raw.with_columns(label=label)
    events = pl.lit(True)
    if contract.history.events != "all":
        events = _expression(raw, path, "history.events", contract.history.events).fill_null(False)
    carried = [name for name in contract.history.columns if name != "label"]
    require_columns(raw, path, carried)
    columns: dict[str, pl.Expr] = {
        USER: pl.col(log.user),
        ITEM: pl.col(log.item),
        TIME: microseconds(raw, path, log.time, log.time_unit),
        LABEL: pl.col("label"),
        EVENT: events,
        **{CONTEXT + name: pl.col(name) for name in log.context},
        **{HISTORY + name: pl.col(name) for name in carried},
    }
    if "label" in contract.history.columns:
        # Not strictly: a label that is no number is told of as such, below.
        columns[HISTORY + "label"] = pl.col("label").cast(pl.Int8, strict=False)
    if log.weight:
        columns[WEIGHT] = pl.col(log.weight)
    if log.request:
        columns[REQUEST] = pl.col(log.request)
    frame = raw.select(**columns)
    _check_types(frame, path, contract)
    return Log(frame.with_columns(pl.col(LABEL).cast(pl.Float32)), path, *_checked_rows(frame, path, contract))


def _expression(raw: pl.LazyFrame, path: str, where: str, text: str) -> pl.Expr:
    names = raw.collect_schema().names()
    try:
        # A column's name first: SQL reads `click-through` as a difference and `like` as nothing at all.
        expression = pl.col(text) if text in names else pl.sql_expr(text)
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{path}: {where} {text!r} is no SQL expression: {error}. Write e.g. `rating >= 4`.") from None
    require_columns(raw, path, expression.meta.root_names())
    try:
        # On no rows: the types are only compared when it runs.
        result = raw.collect_schema().to_frame().select(expression)
    except pl.exceptions.PolarsError as error:
        first = str(error).splitlines()[0]
        raise DataError(
            f"{path}: {where} {text!r} cannot be computed: {first}. Check the types of its columns."
        ) from None
    if result.height:
        raise DataError(
            f"{path}: {where} {text!r} is one value for the whole log, not one a row. Compare a column, e.g. "
            "`rating >= 4`."
        )
    return expression


def microseconds(raw: pl.LazyFrame, path: str, name: str, unit: str) -> pl.Expr:
    """A time column as µs since 1970. Raises DataError for a column that holds no times."""
    dtype = raw.collect_schema()[name]
    column = pl.col(name)
    if dtype.is_integer():
        factor = MICROSECONDS[unit]
        # Within the years that have a date; a product beyond 64 bits would wrap round to some other one.
        return column.cast(pl.Int64).clip(FIRST_TIME // factor, LAST_TIME // factor + 1) * factor
    if dtype == pl.Date or isinstance(dtype, pl.Datetime):
        return column.cast(pl.Datetime("us")).cast(pl.Int64)
    raise DataError(
        f"{path}: time column {name!r} holds {dtype}, expected timestamps, or whole numbers in interactions.time_unit."
    )


def _check_types(frame: pl.LazyFrame, path: str, contract: Contract) -> None:
    schema = frame.collect_schema()
    log = contract.interactions
    for key, name in ((USER, log.user), (ITEM, log.item)):
        with named(path):
            canonical(pl.Series(name, [], dtype=schema[key]))
        if schema[key].is_float():
            raise DataError(f"{path}: column {name!r} holds {schema[key]}, ids must be whole numbers or text. Cast it.")
    if not (schema[LABEL].is_numeric() or schema[LABEL] == pl.Boolean):
        raise DataError(
            f"{path}: label {log.label!r} is {schema[LABEL]}, expected 0/1 or a condition such as `rating >= 4`."
        )
    if schema[EVENT] != pl.Boolean:
        raise DataError(
            f"{path}: history.events {contract.history.events!r} is {schema[EVENT]}, expected a condition such as "
            "`label == 1`."
        )
    if log.weight and not schema[WEIGHT].is_numeric():
        raise DataError(f"{path}: weight column {log.weight!r} holds {schema[WEIGHT]}, expected numbers.")


def _checked_rows(frame: pl.LazyFrame, path: str, contract: Contract) -> tuple[int, np.ndarray]:
    """Row count and times, after counting what must not be there."""
    log = contract.interactions
    with readable(path):
        checked = frame.select(TIME, LABEL, *_null_flags(frame), *_weight_flag(log)).collect(engine="streaming")
    rows = checked.height
    if not rows:
        raise DataError(f"{path}: the log is empty (0 rows). Check the export that wrote it.")
    names: dict[str, str] = {USER: log.user, ITEM: log.item, TIME: log.time, LABEL: log.label}
    for key, name in names.items():
        nulls = int(checked[key].null_count()) if key in (TIME, LABEL) else int(checked[f"{key}.null"].sum())
        if nulls:
            raise DataError(
                f"{path}: column {name!r}: {nulls} of {rows} rows are null. Remove or fill them in the export."
            )
    label = checked[LABEL].cast(pl.Float64)
    wrong = label.filter(~label.is_in([0.0, 1.0]))
    if len(wrong):
        raise DataError(
            f"{path}: label {log.label!r}: {len(wrong)} of {rows} rows are neither 0 nor 1, e.g. {wrong[0]:g}. "
            "Write it as a condition, e.g. `rating >= 4`."
        )
    if log.weight and checked[WRONG_WEIGHT].any():
        example = frame.filter(_weight_flag(log)).select(WEIGHT).first().collect().item()
        raise DataError(
            f"{path}: weight column {log.weight!r}: {int(checked[WRONG_WEIGHT].sum())} of {rows} rows are negative or "
            f"not finite, e.g. {example}. Correct them in the export; a row that must not count has weight 0."
        )
    times = checked[TIME].to_numpy()
    if times.min() <= FIRST_TIME or times.max() >= LAST_TIME:
        raise DataError(
            f"{path}: time column {log.time!r} leaves the years 1 to 9999 when read in {log.time_unit!r}. Correct "
            "interactions.time_unit: 1700000000 is in s, 1700000000000 in ms, 1700000000000000 in us."
        )
    return rows, times


def _null_flags(frame: pl.LazyFrame) -> list[pl.Expr]:
    """One a column, so that every column is read to its end before anything is built on it."""
    names = frame.collect_schema().names()
    return [pl.col(key).is_null().alias(f"{key}.null") for key in names if key not in (TIME, LABEL)]


def _weight_flag(log: Interactions) -> list[pl.Expr]:
    if not log.weight:
        return []
    # As float32, the type it is stored and trained with.
    weight = pl.col(WEIGHT).cast(pl.Float32, strict=False)
    return [((weight < 0) | ~weight.is_finite()).fill_null(False).alias(WRONG_WEIGHT)]


def distinct(log: Log, key: str, name: str) -> pl.Series:
    """The distinct values of a column as sorted keys. Raises DataError naming the log's column `name`."""
    with named(log.path):
        return canonical(value_counts(log.frame, key)["value"].rename(name)).sort()


def value_counts(frame: pl.LazyFrame, column: str) -> pl.DataFrame:
    """How often each distinct value of a column occurs: columns `value` (sorted, without null) and `len`."""
    counts = frame.group_by(pl.col(column).alias("value")).len().filter(pl.col("value").is_not_null())
    return counts.collect(engine="streaming").sort("value")
