"""Impressions that hold all their candidates in one row, as one row a candidate with whether it was clicked."""

from __future__ import annotations

from typing import cast

import polars as pl

from features.contract.log import Candidates
from features.errors import DataError
from features.sources.tables import readable, refuse_not_common, require_columns, wider

CLICKED = "_clicked"


def exploded(raw: pl.LazyFrame, path: str, spec: Candidates, item: str) -> pl.LazyFrame:
    """One row a candidate: the impression's columns, the candidate's id under `item`, 0 or 1 under `_clicked`.

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


def tells_clicks(raw: pl.LazyFrame, path: str, spec: Candidates) -> bool:
    """Whether a table says what was clicked: it has the column `clicked`, or a candidate with a flag.

    Raises:
        DataError: no column of candidates, or one of another type.
    """
    require_columns(raw, path, [spec.column])
    if spec.flag is None:
        refuse_not_common(path, [str(spec.clicked)])
        return spec.clicked in raw.collect_schema()
    with readable(path):
        flagged = _split(raw, path, spec).select(_is_flagged(spec, spec.flag).any()).collect(engine="streaming")
    return bool(flagged.item())


def exploded_unlabelled(raw: pl.LazyFrame, path: str, spec: Candidates, item: str) -> pl.LazyFrame:
    """As `exploded`, of a table that does not say what was clicked: null under `_clicked`."""
    shown = _split(raw, path, spec).with_columns(pl.lit(None, pl.Int8).alias(CLICKED))
    return shown if item == spec.column else shown.with_columns(pl.col(spec.column).alias(item))


def _split(raw: pl.LazyFrame, path: str, spec: Candidates) -> pl.LazyFrame:
    """One row a candidate, which stands under `spec.column` as it is written."""
    dtype, candidate = raw.collect_schema()[spec.column], pl.col(spec.column)
    if spec.flag is None:
        if not isinstance(dtype, pl.List):
            raise DataError(f"{path}: candidates column {spec.column!r} holds {dtype}, expected lists of ids.")
        return raw.explode(spec.column).drop_nulls(spec.column)
    if dtype != pl.String:
        raise DataError(
            f"{path}: candidates column {spec.column!r} holds {dtype}, expected text such as "
            f"`N1{spec.flag}0 N2{spec.flag}1`."
        )
    shown = raw.with_columns(candidate.str.split(spec.separator)).explode(spec.column)
    return shown.filter(candidate.is_not_null() & (candidate != ""))


def _is_flagged(spec: Candidates, flag: str) -> pl.Expr:
    candidate = pl.col(spec.column)
    return candidate.str.ends_with(f"{flag}0") | candidate.str.ends_with(f"{flag}1")


def _from_text(raw: pl.LazyFrame, path: str, spec: Candidates, flag: str, item: str) -> pl.LazyFrame:
    """`N1-0 N2-1`: the id is what stands before the last flag, for ids may hold the same character."""
    shown = _split(raw, path, spec)
    candidate, bare = pl.col(spec.column), ~_is_flagged(spec, flag)
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
        candidate.str.head(-1 - len(flag)).alias(item),
        candidate.str.ends_with("1").cast(pl.Int8).alias(CLICKED),
    )


def _from_lists(raw: pl.LazyFrame, path: str, spec: Candidates, item: str) -> pl.LazyFrame:
    dtype = raw.collect_schema()[str(spec.clicked)]
    if not isinstance(dtype, pl.List):
        raise DataError(f"{path}: candidates column {spec.clicked!r} holds {dtype}, expected lists of ids.")
    shown = _split(raw, path, spec)
    candidate, clicked = pl.col(spec.column), pl.col(str(spec.clicked))
    own, of_clicks = shown.collect_schema()[spec.column], cast(pl.DataType, dtype.inner)
    if wider(own, of_clicks) is None:
        raise DataError(
            f"{path}: candidates column {spec.clicked!r} holds {of_clicks}, {spec.column!r} holds {own}. Write both "
            "with one type."
        )
    if own.is_float() != of_clicks.is_float() and pl.Null not in (own, of_clicks):
        candidate, clicked = candidate.cast(pl.Float64), clicked.cast(pl.List(pl.Float64))
    columns = [clicked.list.contains(candidate).fill_null(False).cast(pl.Int8).alias(CLICKED)]
    if item != spec.column:
        columns.append(pl.col(spec.column).alias(item))
    return shown.with_columns(columns)
