"""The raw log beside its computed label, which expressions over events and further labels may name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import polars as pl

from features.chunk import LABEL
from features.contract.contract import Contract
from features.contract.labels import CLICKED_NAMES, LABEL_NAMES, columns_read
from features.errors import DataError
from features.sources.impressions import CLICKED
from features.sources.tables import expression

ALL = "all"  # of `history.events`
Frame = TypeVar("Frame", pl.LazyFrame, pl.DataFrame)


@dataclass(frozen=True)
class Lacking:
    """What a test file without labels has not.

    Args:
        labels: unknown ones, by their fixed names.
        columns: of the log that such labels are made of, with their types.
    """

    labels: frozenset[str] = frozenset()
    columns: Mapping[str, pl.DataType] = field(default_factory=dict)


class Labelled:
    """The raw columns and the computed label, which has the name `_label`, and `label` where no raw column has it.

    Whether a candidate was clicked is `clicked` likewise. Columns that only unknown labels are made of are null.

    Args:
        raw, path, contract: of the log, or of one of its files.
        lacking: of a test file without labels.

    Raises:
        DataError: the label's expression cannot be computed, or a column is called `_label`.
    """

    def __init__(self, raw: pl.LazyFrame, path: str, contract: Contract, lacking: Lacking | None = None) -> None:
        log, names = contract.interactions, raw.collect_schema().names()
        lacking = lacking or Lacking()
        self._path = path
        self._label = log.label
        if LABEL in names and log.label != LABEL:
            raise DataError(f"{path}: column {LABEL!r} has the name of the computed label. Rename it in the export.")
        aliases = LABEL_NAMES if not log.tells_clicks else (*LABEL_NAMES, *CLICKED_NAMES)
        # What the log has under a name of the label is not the label, unless the contract says so.
        self._ambiguous = {name for name in aliases if name in names and name not in (log.label, CLICKED)}
        nulls = [pl.lit(None, dtype).alias(name) for name, dtype in lacking.columns.items()]
        clicks = []
        if log.tells_clicks:
            clicks = [pl.col(CLICKED).alias(name) for name in CLICKED_NAMES if name not in names]
        frame = raw.with_columns(nulls).with_columns(clicks)
        if LABEL in lacking.labels:
            label: pl.Expr = pl.lit(None, pl.Int8)
        elif log.label is not None:
            label = expression(frame, path, "interactions.label", log.label)
        else:
            # Every row of a log of positives is one.
            label = pl.col(CLICKED) if log.tells_clicks else pl.lit(1, pl.Int8)
        labels = [label.alias(name) for name in LABEL_NAMES if name == LABEL or name not in names]
        self._added = (nulls, clicks, labels)
        self.frame = self.onto(raw)

    def onto(self, raw: Frame) -> Frame:
        """Rows of the same columns with the label."""
        for columns in self._added:
            raw = raw.with_columns(columns)
        return raw

    def expression(self, where: str, text: str) -> pl.Expr:
        """An expression that may name the computed label. Raises DataError where a raw column could be meant too."""
        if both := sorted(self._ambiguous & columns_in(text, self.frame.collect_schema())):
            raise DataError(
                f"{self._path}: {where} reads {both[0]!r}, which may be the log's own column or the computed label "
                f"(interactions.label: {self._label!r}). Write `{LABEL}` for the computed label; to use the column, "
                "call it something else in the export."
            )
        return expression(self.frame, self._path, where, text)

    def event_column(self, name: str, text: str) -> pl.Expr:
        """A column of the events."""
        found = self.expression(f"history.columns.{name}", text)
        # Not strictly: the checks report a label that is no number.
        return found.cast(pl.Int8, strict=False) if text in LABEL_NAMES else found

    def is_event(self, text: str) -> pl.Expr:
        """Which rows may stand in histories; where an expression is null, the row does not."""
        return pl.lit(True) if text == ALL else self.expression("history.events", text).fill_null(False)


def columns_in(text: str, schema: pl.Schema) -> frozenset[str]:
    """Columns that a column's name or an SQL expression reads."""
    return frozenset({text}) if text in schema else columns_read(text)
