"""Checks on the real rows of the log (first form)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from features.contract import Contract
from features.contract_log import Interactions
from features.errors import DataError, named
from features.log import EVENT, FIRST_TIME, ITEM, LABEL, LAST_TIME, TIME, USER, WEIGHT
from features.sources import readable
from features.vocabulary import canonical

WRONG_WEIGHT = "_weight.wrong"


@dataclass(frozen=True)
class Finding:
    """One finding."""

    message: str


@dataclass(frozen=True)
class Checked:
    """A checked log."""

    frame: pl.LazyFrame
    rows: int
    findings: tuple[Finding, ...] = ()


def check_log(
    frame: pl.LazyFrame, path: str, contract: Contract, known_items: Any, known_users: Any, staging: Path
) -> Checked:
    """Check."""
    _check_types(frame, path, contract)
    rows, _ = _checked_rows(frame, path, contract)
    return Checked(frame.with_columns(pl.col(LABEL).cast(pl.Float32)), rows)


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


def _checked_rows(frame: pl.LazyFrame, path: str, contract: Contract) -> tuple[int, Any]:
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
