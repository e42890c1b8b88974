"""Ids and numbers as they come from JSON: those of one type are checked at once and kept as arrays."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest

from features.contract.columns import Numeric
from features.encoding.later_items import LaterIds
from features.encoding.raw_values import WholeIds, ids_at, ids_of, numbers_of
from features.encoding.vocabulary import Vocabulary
from features.errors import ConfigError

NUMBER = Numeric(type="numeric")
LEAST, GREATEST = -(2**63), 2**63 - 1


def test_whole_ids_are_kept_as_numbers_too():
    ids = ids_of("candidates", [7, 0, GREATEST])
    assert ids == (7, 0, GREATEST) and isinstance(ids, WholeIds)
    assert ids.numbers.dtype == np.int64 and ids.numbers.tolist() == [7, 0, GREATEST]


@pytest.mark.parametrize("values", [["a", "b"], ["1"], [1, "a"]])
def test_ids_with_text_stay_as_they_are(values):
    ids = ids_of("candidates", values)
    assert ids == tuple(values) and not isinstance(ids, WholeIds)


@pytest.mark.parametrize("wrong", [True, 1.0, -1, 2**63, None])
def test_what_cannot_be_an_id_is_named(wrong):
    with pytest.raises(ConfigError, match=rf"^candidates\[1\]\.item: {wrong!r} cannot be an id"):
        ids_of("candidates", [3, wrong], ".item")


def test_ids_at_places():
    assert ids_at(ids_of("candidates", [5, 6, 7]), np.array([2, 0])) == [7, 5]
    assert ids_at(ids_of("candidates", ["a", "b", "c"]), np.array([2, 0])) == ["c", "a"]
    assert [type(one) for one in ids_at(ids_of("candidates", [5]), np.array([0]))] == [int]


def test_numbers_of_a_column():
    found = numbers_of("history", "price", [1, None, 2.5, True], NUMBER)
    assert found.dtype == np.float64 and math.isnan(found[1]) and found[[0, 2, 3]].tolist() == [1.0, 2.5, 1.0]
    assert np.isnan(numbers_of("history", "price", [None, None], NUMBER)).tolist() == [True, True]


@pytest.mark.parametrize("wrong", ["1", 10**400, math.inf, math.nan])
def test_what_is_no_number_is_named(wrong):
    with pytest.raises(ConfigError, match=r"^history\[1\]\.price: expected a finite number"):
        numbers_of("history", "price", [True, wrong, 3], NUMBER)


@pytest.mark.parametrize("values", [[10, 12, 11], [10, 10**12, 5]])  # in a table, and searched
def test_whole_numbers_are_looked_up_however_far_they_lie(values):
    asked = [values[2], LEAST, GREATEST, values[0] - 1, values[1] + 1, values[1], values[0]]
    found = Vocabulary(pl.Series(values)).indices_of_numbers(np.array(asked))
    assert found.dtype == np.int64
    assert found.tolist() == [4, 1, 1, 1, 1, 3, 2]


@pytest.mark.parametrize("low", [LEAST, GREATEST - 2])
def test_a_table_at_the_end_of_64_bits(low):
    ids = Vocabulary(pl.Series([low, low + 2]))
    assert ids.indices_of_numbers(np.array([low, low + 1, low + 2, 0, -1 - low])).tolist() == [2, 1, 3, 1, 1]


def test_a_vocabulary_without_values_knows_no_number():
    assert Vocabulary(pl.Series([], dtype=pl.Int64)).indices_of_numbers(np.array([1, 2])).tolist() == [1, 1]


def test_a_changed_item_has_its_later_row():
    ids = LaterIds(Vocabulary(pl.Series([10, 20, 30])), pl.Series([40]), pl.Series([20]))
    assert ids.indices_of_numbers(np.array([10, 20, 30, 40, 50])).tolist() == [2, 6, 4, 5, 1]
