"""Columns of raw events: what the contract's expressions say of them, as a build computes it of the log.

A plain column and a comparison of one with a number are read with numpy. Any other expression is computed by polars on
a small table of the events, in the types that the log had: the very expression of the build.

Shapes: H events.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import eq, ge, gt, le, lt, ne
from typing import Any

import numpy as np
import polars as pl

from features.calendar import SECOND
from features.contract.columns import ColumnSpec, Numeric
from features.contract.contract import Contract
from features.contract.labels import CLICKED_NAMES, LABEL_NAMES
from features.encoding.past import ITEM, TIME, Past, instants
from features.encoding.raw_values import column_of, numbers_of
from features.encoding.time import PER_SECOND
from features.errors import ConfigError
from features.sources.impressions import CLICKED
from features.sources.labelled import ALL, Labelled, columns_in

LABEL = LABEL_NAMES[1]
COMPARISON = re.compile(r"\s*([A-Za-z_]\w*)\s*(<=|>=|<>|!=|==|=|<|>)\s*(-?\d{1,15}(?:\.\d{1,15})?)\s*")
OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "<=": le, ">=": ge, "<>": ne, "!=": ne, "==": eq, "=": eq, "<": lt, ">": gt
}  # fmt: skip
NUMBER = Numeric(type="numeric")


@dataclass(frozen=True)
class Given:
    """A raw column as it is."""

    name: str


@dataclass(frozen=True)
class Compared:
    """Whether the numbers of a raw column, or the label, compare so with one: 1 or 0, missing where they are."""

    name: str
    operator: Callable[[Any, Any], Any]
    number: float


@dataclass(frozen=True)
class Computed:
    """An expression of polars over the labelled log."""

    column: pl.Expr


Reading = Given | Compared | Computed


class RawColumns:
    """How the contract reads raw events; made once for a bundle.

    Args:
        contract: with its expressions.
        log: columns of the raw log and their types.

    Attributes:
        known: names that an event may hold.
    """

    def __init__(self, contract: Contract, log: pl.Schema) -> None:
        self.contract = contract
        self.log = log
        self.labelled = Labelled(pl.LazyFrame(schema=log), "events of a request", contract)
        names = (ITEM, TIME, *log, *(CLICKED_NAMES if contract.interactions.tells_clicks else ()))
        self.known = frozenset((*names, *contract.candidate_columns))
        self.label = self._label()
        events = contract.history.events
        self.events = None if events == ALL else self._reading("history.events", events)
        self.events_read: frozenset[str] = frozenset() if events == ALL else self.reads(events)
        self.columns = {
            name: self._column(name, spec.source or name)
            for name, spec in contract.history.columns.items()
            if spec.type not in ("gap", "residual")
        }
        specs = contract.history.columns
        texts = [specs[name].source or name for name, one in self.columns.items() if isinstance(one, Computed)]
        texts += [events] if isinstance(self.events, Computed) else []
        # The label stands beside whatever polars computes.
        self.computed_of = frozenset[str]().union(*map(self.reads, [LABEL, *texts]))

    def reads(self, text: str) -> frozenset[str]:
        """Raw columns that an expression over events reads, those of the label in its place."""
        found: set[str] = set()
        for name in columns_in(text, self.labelled.frame.collect_schema()):
            if name in LABEL_NAMES and name not in self.log:
                label = self.contract.interactions.label or (CLICKED if self._clicks else None)
                found |= self.reads(label) if label else frozenset()
            elif name in CLICKED_NAMES and self._clicks:
                found.add(CLICKED)
            elif name in self.log:
                found.add(name)
        return frozenset(found)

    @property
    def _clicks(self) -> bool:
        return self.contract.interactions.tells_clicks

    def _label(self) -> Reading | None:
        """The label's reading; None in a log of positives alone."""
        log = self.contract.interactions
        if log.label is None:
            return Given(CLICKED) if self._clicks else None
        found = self._reading("interactions.label", log.label)
        if isinstance(found, Given) and not (self.log[found.name].is_numeric() or self.log[found.name] == pl.Boolean):
            return Computed(self.labelled.expression("interactions.label", log.label))
        return found

    def _column(self, name: str, text: str) -> Given | Computed | None:
        """A column's reading; None for the label."""
        if text in LABEL_NAMES:
            return None
        found = self._reading(f"history.columns.{name}", text)
        # A build makes whole numbers of a condition only where the label is meant.
        return found if isinstance(found, Given) else Computed(self.labelled.event_column(name, text))

    def _reading(self, where: str, text: str) -> Reading:
        if text in self.log or (text in CLICKED_NAMES and self._clicks):
            return Given(CLICKED if text in CLICKED_NAMES and self._clicks else text)
        column = self.labelled.expression(where, text)
        found = COMPARISON.fullmatch(text)
        if found is not None and self._compares_exactly(found[1]):
            return Compared(found[1], OPERATORS[found[2]], float(found[3]))
        return Computed(column)

    def _compares_exactly(self, name: str) -> bool:
        """Whether numpy compares as polars does: 32-bit floats are compared as such there."""
        if name == self.contract.interactions.time:
            return False
        if name in self.log:
            return self.log[name].is_integer() or self.log[name] == pl.Float64
        return name in (*LABEL_NAMES, *CLICKED_NAMES)


@dataclass(eq=False)
class RawEvents:
    """What the contract says of some events.

    Args:
        reading: of the contract.
        past: the events.
        users: raw id of each event's user.

    Raises:
        ConfigError: a value of a type that its column does not have; names the event and the column.
    """

    reading: RawColumns
    past: Past
    users: Sequence[Any]
    _frame: pl.DataFrame | None = field(default=None, init=False)
    _given: dict[str, list[Any]] = field(default_factory=dict, init=False)

    def given(self, name: str) -> list[Any]:
        """Raw values of a column as they came, None where not given."""
        if name not in self._given:
            self._given[name] = self._read(name)
        return self._given[name]

    def _read(self, name: str) -> list[Any]:
        log = self.reading.contract.interactions
        if name == log.item:
            return list(self.past.items)
        if name == log.user:
            return list(self.users)
        if name == CLICKED and log.tells_clicks:
            bare = CLICKED_NAMES[0]
            return [row.get(CLICKED, row.get(bare)) for row in self.past.columns]
        if name not in self.past.names:
            return [None] * len(self.past.columns)
        return [row.get(name) for row in self.past.columns]

    def values(self, name: str, spec: ColumnSpec) -> tuple[Any, ...]:
        """A raw column as a column of that type has it."""
        values = self.given(name)
        if spec.form == "number" and bool in set(map(type, values)):
            values = [float(value) if isinstance(value, bool) else value for value in values]
        return tuple(self._checked(values, lambda some: column_of("history", name, some, spec)))

    def numbers(self, name: str) -> np.ndarray:
        """A raw column of numbers, float64 [H], NaN where not given."""
        found_H = self._checked(self.given(name), lambda some: numbers_of("history", name, some, NUMBER))
        return np.asarray(found_H, np.float64)

    def _checked(self, values: list[Any], check: Callable[[list[Any]], Iterable[Any]]) -> Iterable[Any]:
        """What a check makes of a column; a log may hold infinite numbers, and then a source of pasts gives them."""
        try:
            return check(values)
        except ConfigError:
            unsent = range(self.past.sent, len(values))
            infinite = {i for i in unsent if isinstance(values[i], float) and np.isinf(values[i])}
            if not infinite:
                raise
        finite = [None if i in infinite else value for i, value in enumerate(values)]
        return [values[i] if i in infinite else one for i, one in enumerate(check(finite))]

    def is_event(self) -> np.ndarray:
        """Which events may stand in a history, bool [H]."""
        reading = self.reading.events
        if reading is None:
            return np.ones(len(self.past.time_H), bool)
        if isinstance(reading, Computed):
            return self._series(reading.column).fill_null(False).to_numpy()
        if isinstance(reading, Compared):
            return self._compared(reading) == 1
        return self.numbers(reading.name) == 1

    @cached_property
    def label(self) -> np.ndarray:
        """The label, float32 [H], NaN where not given."""
        reading = self.reading.label
        if reading is None:
            return np.ones(len(self.past.time_H), np.float32)
        if isinstance(reading, Compared):
            return self._compared(reading).astype(np.float32)
        if isinstance(reading, Computed):
            found_H = self._series(reading.column.cast(pl.Float64)).fill_null(float("nan")).to_numpy()
        else:
            found_H = self.numbers(reading.name)
        wrong = np.flatnonzero((found_H != 0) & (found_H != 1) & ~np.isnan(found_H))
        if len(wrong):
            raise ConfigError(f"history[{wrong[0]}]: its label is {found_H[wrong[0]]:g}, expected 0 or 1.")
        return found_H.astype(np.float32)

    def computed(self, reading: Given | Computed) -> pl.Series:
        """What an expression says of each event, or the time as the log has it."""
        return self._typed(reading.name) if isinstance(reading, Given) else self._series(reading.column)

    def lacking(self, names: frozenset[str]) -> dict[str, np.ndarray]:
        """Where events do not give these raw columns, bool [H] by name."""
        timed = self.reading.contract.interactions.time
        return {name: np.array([one is None for one in self.given(name)]) for name in names if name != timed}

    def _compared(self, reading: Compared) -> np.ndarray:
        if reading.name in LABEL_NAMES and reading.name not in self.reading.log:
            number_H: np.ndarray = self.label.astype(np.float64)
        elif reading.name in CLICKED_NAMES and reading.name not in self.reading.log:
            number_H = self.numbers(CLICKED)
        else:
            number_H = self.numbers(reading.name)
        return np.where(np.isnan(number_H), np.nan, reading.operator(number_H, reading.number))

    def _series(self, column: pl.Expr) -> pl.Series:
        if self._frame is None:
            columns = {name: self._typed(name) for name in sorted(self.reading.computed_of)}
            # A row index keeps the number of rows where expressions read the label of a log of positives alone.
            frame = pl.DataFrame({"": np.arange(len(self.past.time_H))} | columns)
            self._frame = self.reading.labelled.onto(frame)
        try:
            return self._frame.select(column).to_series()
        except pl.exceptions.PolarsError as error:
            raise ConfigError(f"history: cannot be computed: {str(error).splitlines()[0]}.") from None

    def _typed(self, name: str) -> pl.Series:
        """A raw column in the type that the log has."""
        if name == self.reading.contract.interactions.time:
            return _times_as_logged(self.past.time_H, self.reading)
        values, dtype = self.given(name), self.reading.log[name]
        if dtype == pl.Datetime or dtype == pl.Date:
            return _times(f"history[{{}}].{name}", values, dtype, self.reading.contract)
        if dtype.is_integer():
            values = [int(one) if isinstance(one, float) and one.is_integer() else one for one in values]
        try:
            if dtype == pl.Categorical or dtype == pl.Enum:
                return pl.Series(values, dtype=pl.String).cast(dtype, strict=False)
            return pl.Series(values, dtype=dtype)
        except (TypeError, OverflowError, pl.exceptions.PolarsError):
            place = next((i for i, one in enumerate(values) if not _fits(one, dtype)), None)
            if place is None:  # polars makes decimals of values of one type alone
                return pl.concat([pl.Series([one], dtype=dtype) for one in values])
            raise ConfigError(
                f"history[{place}].{name}: {values[place]!r} is not what the log has there, {dtype}. Send it as "
                "the log has it."
            ) from None


def log_time(time_H: np.ndarray, dtype: pl.DataType, contract: Contract) -> pl.Series:
    """Times (µs since 1970, int64 [H]) as the log's time column has them."""
    log = contract.interactions
    if dtype.is_integer():
        return pl.Series(time_H // (SECOND // PER_SECOND[log.time_unit]), dtype=pl.Int64).cast(dtype, strict=False)
    moments = pl.Series(time_H, dtype=pl.Int64).cast(pl.Datetime("us"))
    if dtype == pl.String and log.time_format is not None:
        return moments.dt.strftime(log.time_format)
    return _zoned(moments, dtype)


def _times_as_logged(time_H: np.ndarray, reading: RawColumns) -> pl.Series:
    return log_time(time_H, reading.log[str(reading.contract.interactions.time)], reading.contract)


def _times(where: str, values: list[Any], dtype: pl.DataType, contract: Contract) -> pl.Series:
    """ISO text as a column of times; None is null."""
    known_H = instants(where, [0 if one is None else one for one in values], contract).tolist()
    found = [None if one is None else known for one, known in zip(values, known_H, strict=True)]
    return _zoned(pl.Series(found, dtype=pl.Int64).cast(pl.Datetime("us")), dtype)


def _zoned(moments: pl.Series, dtype: pl.DataType) -> pl.Series:
    if isinstance(dtype, pl.Datetime) and dtype.time_zone is not None:
        moments = moments.dt.replace_time_zone("UTC").dt.convert_time_zone(dtype.time_zone)
    return moments.cast(dtype, strict=False)


def _fits(value: Any, dtype: pl.DataType) -> bool:
    try:
        pl.Series([value], dtype=dtype)
    except (TypeError, OverflowError, pl.exceptions.PolarsError):
        return False
    return True
