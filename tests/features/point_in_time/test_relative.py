"""Request-relative columns of numbers that were worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from features.contract.relative import RelativeColumn
from features.encoding.number import NumericEncoder
from features.point_in_time.relative import relative_values

PLAIN = NumericEncoder("none", 0.0, 1.0)
NAN = math.nan


def related(kind: str, values: list[float], requests: list[int], reader: NumericEncoder = PLAIN) -> list[float]:
    """One column of numbers as they are before scaling."""
    encoded = reader.encode_many(np.array(values, np.float64))
    column = RelativeColumn("made", kind, None if kind == "count" else "price")  # type: ignore[arg-type]
    found = relative_values([column], {"price": reader}, {"price": encoded}, np.array(requests, np.int64))
    return found["made"].tolist()


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        # 4 stands above 1 and both 2s; each 2 above 1 and half above the other 2.
        ("rank", [1.0, 0.0, 0.5, 0.5]),
        ("difference", [1.75, -1.25, -0.25, -0.25]),
        ("share", [4 / 9, 1 / 9, 2 / 9, 2 / 9]),
        ("count", [4, 4, 4, 4]),
    ],
)
def test_one_list(kind: str, wanted: list[float]) -> None:
    assert related(kind, [4, 1, 2, 2], [0, 0, 0, 0]) == pytest.approx(wanted)


@pytest.mark.parametrize(("kind", "wanted"), [("rank", 0.5), ("difference", 0.0), ("share", 1.0), ("count", 1.0)])
def test_a_candidate_alone(kind: str, wanted: float) -> None:
    assert related(kind, [7], [3]) == [wanted]


def test_lists_do_not_see_each_other_wherever_their_rows_stand() -> None:
    requests = [9, -5, 9, 2**62, -5, 9]
    values = [3.0, 10.0, 1.0, 8.0, 30.0, 2.0]
    assert related("rank", values, requests) == [1.0, 0.0, 0.0, 0.5, 1.0, 0.5]
    assert related("difference", values, requests) == [1.0, -10.0, -1.0, 0.0, 10.0, 0.0]
    assert related("share", values, requests) == pytest.approx([3 / 6, 10 / 40, 1 / 6, 1.0, 30 / 40, 2 / 6])
    assert related("count", values, requests) == [3, 2, 3, 1, 2, 3]


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("rank", [NAN, 0.0, 1.0, NAN, NAN]),
        ("difference", [NAN, -1.0, 1.0, NAN, NAN]),
        ("share", [NAN, 0.25, 0.75, NAN, NAN]),
        ("count", [3, 3, 3, 2, 2]),
    ],
)
def test_a_missing_number_takes_no_part_and_stays_missing_but_is_a_candidate(kind: str, wanted: list[float]) -> None:
    assert related(kind, [NAN, 1, 3, NAN, NAN], [0, 0, 0, 1, 1]) == pytest.approx(wanted, nan_ok=True)


@pytest.mark.parametrize("kind", ["rank", "difference", "share", "count"])
def test_no_candidate_at_all(kind: str) -> None:
    assert related(kind, [], []) == []


def test_shares_of_nothing_are_missing_whatever_scaling_leaves_of_a_zero() -> None:
    for reader in (PLAIN, NumericEncoder("log1p", 3.1, 1.7), NumericEncoder("none", 1e4, 37.0)):
        assert np.isnan(related("share", [0, 0, 0], [0, 0, 0], reader)).all()
        assert related("share", [0, 50, 0, 150], [0] * 4, reader) == pytest.approx([0, 0.25, 0, 0.75], abs=1e-3)
    assert np.isnan(related("share", [-2, 2], [0, 0])).all()
    many = NumericEncoder("log1p", 3.1, 1.7)
    assert np.isnan(related("share", [0.0] * 5000, [0] * 5000, many)).all()


def test_equal_numbers_differ_by_exactly_nothing() -> None:
    """A rounded mean would leave 1e-17, which standardising blows up to 1."""
    reader = NumericEncoder("none", 0.3, 0.7)
    for count in range(1, 60):
        assert related("difference", [0.1] * count, [0] * count, reader) == [0.0] * count


def test_a_difference_is_on_the_scale_of_its_column() -> None:
    reader = NumericEncoder("log1p", 1.0, 2.0)
    wanted = (np.log1p(7) - (np.log1p(7) + np.log1p(1)) / 2) / 2
    assert related("difference", [7, 1], [0, 0], reader) == pytest.approx([wanted, -wanted])


def test_a_share_is_of_the_numbers_before_scaling_and_after_clipping() -> None:
    reader = NumericEncoder("log1p", 2.0, 3.0, (0.0, 10.0))
    assert related("share", [1000, 5, 5], [0, 0, 0], reader) == pytest.approx([0.5, 0.25, 0.25], rel=1e-5)
