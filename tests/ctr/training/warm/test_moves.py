"""Which old row, or which pieces of an old curve, a weight comes from; by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from ctr.model.numbers import PiecewiseNumbers
from ctr.training.warm.moves import EncodedField, curve_move, index_map, row_move, scale_move
from features.encoding.base import ColumnEncoder
from features.encoding.category import CategoricalEncoder, HashedEncoder, TagsEncoder
from features.encoding.number import BucketsEncoder, NumericEncoder
from features.encoding.time import DatePartEncoder
from features.encoding.vocabulary import Vocabulary
from features.store.schema import Field


def names(*values: Any) -> CategoricalEncoder:
    return CategoricalEncoder(Vocabulary(pl.Series("x", values)))


@pytest.mark.parametrize(
    ("before", "now", "expected"),
    [
        # Index 2 is 10 in both; 3 was 20 and is 40 now, which nobody knew; 4 is 30; 5 is 20, which was 3.
        (names(10, 20, 30), names(10, 40, 30, 20), [0, 1, 2, -1, 4, 3]),
        (names("b", "a"), names("a", "b", "c"), [0, 1, 3, 2, -1]),
        (TagsEncoder(names("b", "a").vocabulary, 2), TagsEncoder(names("a", "c").vocabulary, 2), [0, 1, 3, -1]),
        # Buckets below 1, from 1 and from 3; now below 2, from 2, from 4: they begin in the first, second, third one.
        (BucketsEncoder([1.0, 3.0]), BucketsEncoder([2.0, 4.0]), [0, 1, 3, 3, 4]),
        (HashedEncoder(3), HashedEncoder(3), [0, 1, 2, 3, 4]),
        (HashedEncoder(3), HashedEncoder(4), [0, 1, -1, -1, -1, -1]),
        (DatePartEncoder("weekday", "s"), DatePartEncoder("weekday", "s"), list(range(9))),
        (None, None, [0, 1, 2]),
    ],
)
def test_an_index_is_found_by_its_raw_value(
    before: ColumnEncoder | None, now: ColumnEncoder | None, expected: list[int]
) -> None:
    assert index_map(before, now, len(expected)).tolist() == expected


def test_a_new_value_begins_as_the_unknown_one() -> None:
    move = row_move(np.array([0, 1, -1, 2]))
    assert (move.source_V.tolist(), move.start_V.tolist()) == ([0, 1, -1, 2], [0, 1, 1, 2])


def number(edges: tuple[float, ...], mean: float = 0.0, deviation: float = 1.0) -> EncodedField:
    return EncodedField(
        Field(name="n", kind="numeric", edges=edges), NumericEncoder("none", mean, deviation, None, edges)
    )


def test_a_curve_is_read_at_its_new_edges() -> None:
    """Old: 0 to 2 rises by 6, 2 to 4 by 10, missing says 5. New edges 1, 2, 4: they rise by 3 and by 10."""
    move = curve_move([(number((0.0, 2.0, 4.0)), number((1.0, 2.0, 4.0)))])
    assert not move.same
    assert (torch.tensor([[6.0, 10.0, 5.0]]).double() @ move.matrix_II).tolist() == [[3.0, 10.0, 5.0]]


def test_a_curve_says_the_same_of_a_number_on_another_scale_and_beside_another_column() -> None:
    """Up to what it says at its first new edge: between two numbers it rises by the same."""
    before = [number((-1.0, 0.0, 1.0)), number((0.0, 1.0), mean=3.0)]
    now = [number((-2.0, -1.0, 0.0, 1.0), mean=1.0, deviation=0.5), number((0.0, 1.0), mean=3.0)]
    old = PiecewiseNumbers([one.field for one in before], 2)
    new = PiecewiseNumbers([one.field for one in now], 2)
    move = curve_move(list(zip(before, now, strict=True)))
    with torch.no_grad():
        new.weight.copy_((old.weight.double() @ move.matrix_II).float())
    # Raw 0.0, 0.5, 1.0 and 1.5 are themselves on the old scale, and -2, -1, 0 and 1 on the new one.
    raw = torch.tensor([0.0, 0.5, 1.0, 1.5])
    was = old(torch.stack([raw, torch.full_like(raw, 0.25)], dim=-1))
    is_now = new(torch.stack([(raw - 1) / 0.5, torch.full_like(raw, 0.25)], dim=-1))
    torch.testing.assert_close(is_now - is_now[0], was - was[0])
    assert (was - was[0]).abs().max() > 0.01
    missing = torch.full((1, 2), torch.nan)
    torch.testing.assert_close(new(missing), old(missing))


def test_the_same_numbers_stay_as_they_are() -> None:
    move = curve_move([(number((0.0, 0.1, 0.3)), number((0.0, 0.1, 0.3)))])
    assert move.same and torch.equal(move.matrix_II, torch.eye(3, dtype=torch.float64))
    other_unit = number((0.0, 0.1, 0.3), deviation=2.0)
    assert not curve_move([(number((0.0, 0.1, 0.3)), other_unit)]).same


def test_a_number_that_is_read_straight_is_worth_its_new_unit() -> None:
    """A unit that is twice as large counts twice; the weight of being missing stays."""
    move = scale_move([(number(()), number((), deviation=2.0))])
    assert (torch.tensor([[3.0, 7.0]]).double() @ move.matrix_II).tolist() == [[6.0, 7.0]]
