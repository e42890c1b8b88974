"""Every kind of column encoder by the `type` that a contract declares, and how one is fitted and asked for a value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from features.contract.columns import ColumnSpec
from features.encoding.base import ColumnEncoder
from features.encoding.category import CategoricalEncoder, HashedEncoder, TagsEncoder
from features.encoding.number import BucketsEncoder, NumericEncoder
from features.encoding.time import DatePartEncoder, GapEncoder
from features.errors import error_prefix

ENCODERS: dict[str, type[ColumnEncoder]] = {
    "categorical": CategoricalEncoder,
    "hashed": HashedEncoder,
    "tags": TagsEncoder,
    "numeric": NumericEncoder,
    "residual": NumericEncoder,
    "buckets": BucketsEncoder,
    "date": DatePartEncoder,
    "gap": GapEncoder,
}


def fit_column(
    raw: pl.Series,
    spec: ColumnSpec,
    path: str,
    prior: ColumnEncoder | None = None,
    times: pl.Series | None = None,
) -> ColumnEncoder:
    """Fit the encoder that a column's declared type asks for, or let the `prior` one grow.

    Raises:
        DataError: the column is not of that type; names file and column.
    """
    with error_prefix(path):
        if prior is not None:
            return prior.extended(raw, spec, times)
        return ENCODERS[spec.type].fit(raw, spec, times)


def encode_value(where: str, encoder: ColumnEncoder, value: Any) -> np.ndarray:
    """One raw value of a column. Raises ConfigError, naming `where`, for a type that the column does not have."""
    encoder.check(where, value)
    return encoder.encode_one(value)


def encode_values(where: str, encoder: ColumnEncoder, values: Sequence[Any], first: int = 0) -> np.ndarray:
    """Several raw values of a column, int64 [N] or float32 [N].

    Args:
        where: names them in an error, with `{}` for a value's number.
        encoder: of the column.
        values: as a request has them, None for missing.
        first: number of the first.

    Raises:
        ConfigError: a value of a type that the column does not have.
    """
    encoder.check_many(where, values, first)
    return encoder.encode_many(values)
