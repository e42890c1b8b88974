"""Impressions that hold all their candidates in one row, as one row a candidate with whether it was clicked."""

from __future__ import annotations

import polars as pl

from features.contract_log import Candidates
from features.errors import DataError
from features.sources import readable, require_columns

CLICKED = "clicked"


def exploded(raw: pl.LazyFrame, path: str, spec: Candidates, item: str) -> pl.LazyFrame:
    """One row a candidate: the impression's columns, the candidate's id under `item`, 0 or 1 under `clicked`.

    Args:
        raw: one row an impression.
        path: of its file, for messages.
        spec: which column holds the candidates, and how clicks are written.
        item: name that the exploded id gets (`interactions.item`).

    Raises:
        DataError: the columns are missing or of another type, or a candidate has no 0/1 flag.
    """
    require_columns(raw, path, [name for name in (spec.column, spec.clicked) if name])
    if spec.flag is None:
        return _from_lists(raw, path, spec, item)
    return _from_text(raw, path, spec, spec.flag, item)


def _from_text(raw: pl.LazyFrame, path: str, spec: Candidates, flag: str, item: str) -> pl.LazyFrame:
    """`N1-0 N2-1`: the id is what stands before the last flag, for ids may hold the same character."""
    dtype = raw.collect_schema()[spec.column]
    if dtype != pl.String:
        raise DataError(
            f"{path}: candidates column {spec.column!r} holds {dtype}, expected text such as `N1{flag}0 N2{flag}1`."
        )
    shown = raw.with_columns(pl.col(spec.column).str.split(spec.separator)).explode(spec.column)
    shown = shown.filter(pl.col(spec.column).is_not_null() & (pl.col(spec.column) != ""))
    candidate, width = pl.col(spec.column), len(flag.encode())
    bare = ~(candidate.str.ends_with(f"{flag}0") | candidate.str.ends_with(f"{flag}1"))
    with readable(path):
        broken = shown.select(
            candidate.filter(bare).len().alias("rows"), candidate.filter(bare).first().alias("example")
        )
        rows, example = broken.collect(engine="streaming").row(0)
    if rows:
        raise DataError(
            f"{path}: candidates column {spec.column!r}: {rows} candidates do not end in {flag}0 or {flag}1, e.g. "
            f"{example!r}. Check candidates.separator and candidates.flag."
        )
    return shown.with_columns(
        candidate.str.head(-1 - width).alias(item),
        candidate.str.ends_with("1").cast(pl.Int8).alias(CLICKED),
    )


def _from_lists(raw: pl.LazyFrame, path: str, spec: Candidates, item: str) -> pl.LazyFrame:
    schema = raw.collect_schema()
    for name in (spec.column, str(spec.clicked)):
        if not isinstance(schema[name], pl.List):
            raise DataError(f"{path}: candidates column {name!r} holds {schema[name]}, expected lists of ids.")
    shown = raw.explode(spec.column).drop_nulls(spec.column)
    clicked = pl.col(str(spec.clicked)).list.contains(pl.col(spec.column)).fill_null(False)
    columns = [clicked.cast(pl.Int8).alias(CLICKED)]
    if item != spec.column:
        columns.append(pl.col(spec.column).alias(item))
    return shown.with_columns(columns)
