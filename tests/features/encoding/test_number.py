"""Encoders of numbers, by hand: means and deviations, clips and logarithms, buckets and pauses."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.contract.columns import Buckets, Gap, Numeric, Residual
from features.encoding.number import BucketsEncoder, NumericEncoder
from features.encoding.registry import fit_column
from features.encoding.time import GapEncoder


def test_numeric_by_hand() -> None:
    encoder = NumericEncoder.fit(pl.Series("c", [1, 3, None, 5]), Numeric(type="numeric"))
    # mean 3, deviation sqrt((4 + 0 + 4) / 3)
    deviation = math.sqrt(8 / 3)
    assert (encoder.mean, encoder.deviation) == pytest.approx((3.0, deviation))
    expected = [-2 / deviation, np.nan, 1 / deviation]
    np.testing.assert_allclose(encoder.encode(pl.Series("c", [1, None, 4])), expected, rtol=1e-6)
    logs = NumericEncoder.fit(pl.Series("c", [0.0, math.e - 1]), Numeric(type="numeric", transform="log1p"))
    # logs 0 and 1: mean ½, deviation ½; below or at -1 there is no logarithm.
    np.testing.assert_allclose(logs.encode(pl.Series("c", [0.0, math.e - 1, -1.0, -2.0])), [-1, 1, np.nan, np.nan])


def test_numbers_are_clipped_before_all_else() -> None:
    spec = Numeric(type="numeric", clip=(0, 8))
    encoder = NumericEncoder.fit(pl.Series("c", [-50.0, 8.0, 1e9, 0.0, math.inf]), spec)
    # As if they were 0, 8, 8, 0; an infinity is no number.
    assert (encoder.mean, encoder.deviation) == (4.0, 4.0)
    np.testing.assert_array_equal(
        encoder.encode(pl.Series("c", [-1.0, 2.0, 9.0, math.inf, -math.inf, math.nan])),
        np.array([-1, -0.5, 1, np.nan, np.nan, np.nan], np.float32),
    )
    logs = NumericEncoder.fit(pl.Series("c", [1.0]), Numeric(type="numeric", clip=(-5, 1), transform="log1p"))
    # log1p(1) is a constant of the training window; what is clipped to -5 has no logarithm.
    np.testing.assert_allclose(logs.encode(pl.Series("c", [7.0, 0.0, -9.0])), [0, -math.log(2), np.nan], rtol=1e-6)


def test_numbers_that_are_not_scaled() -> None:
    raw = NumericEncoder.fit(pl.Series("c", [5.0, 9.0]), Numeric(type="numeric", scale="none", clip=(-1, 100)))
    assert raw.encode(pl.Series("c", [5.0, -3.0, None])).tolist()[:2] == [5.0, -1.0]
    logs = NumericEncoder.fit(pl.Series("c", [5.0]), Numeric(type="numeric", scale="none", transform="log1p"))
    np.testing.assert_allclose(logs.encode(pl.Series("c", [0.0, math.e - 1])), [0, 1], rtol=1e-6)
    residual = fit_column(pl.Series("c", [0.1, 0.9]), Residual(type="residual", counter="ctr"), "log.csv")
    assert residual.encode(pl.Series("c", [-0.25, 0.75])).tolist() == [-0.25, 0.75]
    assert residual.field("c").kind == "numeric"


@pytest.mark.parametrize("values", [[4.0] * 3, [0.1] * 3, [1e9 + 0.1] * 7, [0.1], [None, None], [0.0, 5e-324]])
def test_a_constant_column_has_deviation_one(values: list[Any]) -> None:
    """Also where rounding gives a mean that no value equals: 0.1 three times has a computed deviation of 1e-17."""
    encoder = NumericEncoder.fit(pl.Series("c", values, dtype=pl.Float64), Numeric(type="numeric"))
    assert encoder.deviation == 1.0
    assert abs(encoder.encode_one((values[0] or 0.0) + 1)[0] - 1) < 1e-3 + abs(encoder.mean) * 1e-12


def test_an_extended_number_keeps_its_scale() -> None:
    spec = Numeric(type="numeric")
    encoder = fit_column(pl.Series("c", [0.0, 2.0]), spec, "log.csv")
    extended = fit_column(pl.Series("c", [100.0, 900.0]), spec, "log.csv", prior=encoder)
    assert extended.encode(pl.Series("c", [0.0, 2.0, 3.0])).tolist() == [-1.0, 1.0, 2.0]


def test_quantile_buckets_by_hand() -> None:
    encoder = BucketsEncoder.fit(pl.Series("c", [8, 1, 7, 2, 6, 3, 5, 4, None]), Buckets(type="buckets", count=4))
    # Quarters of 1…8 end with 2, 4 and 6; a value equal to an edge lies above it.
    assert encoder.edges.tolist() == [2.0, 4.0, 6.0]
    column = pl.Series("c", [-math.inf, 1.9, 2.0, 3.9, 4.0, 5.9, 6.0, math.inf, math.nan, None])
    assert encoder.encode(column).tolist() == [2, 2, 3, 3, 4, 4, 5, 5, 1, 1]
    assert encoder.field("c").size == 6


def test_repeated_values_make_fewer_buckets() -> None:
    encoder = BucketsEncoder.fit(pl.Series("c", [0] * 90 + [1] * 5 + [7] * 5), Buckets(type="buckets", count=20))
    # Nine of ten are 0, so most quantiles coincide; none is left below the smallest value.
    assert encoder.edges.tolist() == [1.0]
    assert encoder.encode(pl.Series("c", [0, 1, 7, 99])).tolist() == [2, 3, 3, 3]
    for nothing_to_divide in ([3.0, 3.0], [None, None], [math.nan, math.inf]):
        flat = BucketsEncoder.fit(pl.Series("c", nothing_to_divide, dtype=pl.Float64), Buckets(type="buckets"))
        assert flat.encode(pl.Series("c", [-5.0, 3.0, None])).tolist() == [2, 2, 1] and flat.field("c").size == 3


def test_given_buckets_learn_nothing() -> None:
    spec = Buckets(type="buckets", edges=(0.0, 18.0, 65.0))
    encoder = BucketsEncoder.fit(pl.Series("age", [900, 901]), spec)
    assert encoder.encode(pl.Series("age", [-1, 0, 17, 18, 64, 65, None])).tolist() == [2, 3, 3, 4, 4, 5, 1]


@given(st.lists(st.floats(-100, 100) | st.integers(0, 3).map(float), min_size=1, max_size=40), st.integers(1, 12))
def test_no_quantile_bucket_is_empty_in_training(values: list[float], count: int) -> None:
    encoder = BucketsEncoder.fit(pl.Series("c", values), Buckets(type="buckets", count=count))
    index = encoder.encode(pl.Series("c", values))
    assert set(index.tolist()) == set(range(2, encoder.field("c").size)) and len(encoder.edges) < count + 1


def test_pauses_double() -> None:
    encoder = fit_column(pl.Series("gap", [], dtype=pl.Float64), Gap(type="gap", buckets=4), "log.csv")
    assert isinstance(encoder, GapEncoder) and encoder.field("gap").size == 6
    # Under 2 s, under 4 s, under 8 s, and longer; the first event of a user has no pause.
    column = pl.Series("gap", [None, 0.0, 1.9, 2.0, 3.9, 4.0, 7.9, 8.0, 1e9])
    assert encoder.encode(column).tolist() == [1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert encoder.encode_one(3.9).tolist() == [3]
    # The default reaches from a second to 2^23 seconds, 97 days.
    day = GapEncoder.fit(pl.Series("gap", [], dtype=pl.Float64), Gap(type="gap"))
    assert day.encode_one(86_400).tolist() == [2 + 16] and day.encode_one(2**23).tolist() == [2 + 23]


def test_edges_are_quantiles_of_the_encoded_training_values() -> None:
    raw = pl.Series("n", [*range(1, 49), None, float("inf")], dtype=pl.Float64, strict=False)
    encoder = NumericEncoder.fit(raw, Numeric(type="numeric", transform="log1p"))
    encoded = encoder.encode(raw)
    # 24 pieces of 48 values: each edge is the value that ends a piece, the first the least of all.
    assert encoder.edges == tuple(encoded[[0, *range(1, 48, 2)]].tolist())
    assert encoder.field("n").edges == encoder.edges
    assert NumericEncoder.from_json(encoder.to_json(lambda _: ""), lambda _: None).edges == encoder.edges


def test_edges_that_coincide_are_one() -> None:
    few = NumericEncoder.fit(pl.Series("n", [0.0] * 99 + [1.0]), Numeric(type="numeric", scale="none"))
    assert few.edges == (0.0, 1.0)
    constant = NumericEncoder.fit(pl.Series("n", [3.0, 3.0]), Numeric(type="numeric", scale="none"))
    assert constant.edges == (3.0,)
    assert NumericEncoder.fit(pl.Series("n", [None], dtype=pl.Float64), Numeric(type="numeric")).edges == ()
