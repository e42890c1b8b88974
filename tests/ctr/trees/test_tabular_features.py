"""Tabular features, against plain loops over stored rows, and one past by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from ctr.history.target_history import BatchHistory
from ctr.trees.feature_rows import feature_rows
from ctr.trees.tabular_features import TabularFeatures
from features.errors import ConfigError
from features.store.feature_set import FeatureSet
from features.store.schema import FIRST_VALUE, Field, Schema, VectorSet
from tests.toy import GENRES, HISTORY_LEN, HOURS, SEGMENTS, TAGS, toy_feature_set


@pytest.fixture(scope="module")
def feature_set(tmp_path_factory: pytest.TempPathFactory) -> FeatureSet:
    return toy_feature_set(tmp_path_factory.mktemp("toy") / "toy", rows=200, users=12, items=30)


def flags(values: Any, size: int) -> list[float]:
    """A 0 or 1 for each of `size` values, of one index or several."""
    there = set(np.atleast_1d(values).tolist())
    return [float(FIRST_VALUE + value in there) for value in range(size)]


def cosine(first: np.ndarray, second: np.ndarray) -> float:
    length = math.sqrt(sum(float(x) ** 2 for x in first)) * math.sqrt(sum(float(x) ** 2 for x in second))
    return sum(float(x) * float(y) for x, y in zip(first, second, strict=True)) / length if length else 0.0


def alike(feature_set: FeatureSet, space: str, one: int, other: int) -> float:
    """Target and event in one space of the toy: two vector sets, tags and genre."""
    if space in ("text", "image"):
        return cosine(feature_set.vectors(space)[one], feature_set.vectors(space)[other])
    values = feature_set.items[space]
    first, second = ({int(v) for v in np.atleast_1d(values[i]) if v >= FIRST_VALUE} for i in (one, other))
    return len(first & second) / math.sqrt(len(first) * len(second)) if first and second else 0.0


def literal_row(feature_set: FeatureSet, rows: dict[str, Any], events: dict[str, Any], i: int) -> list[float]:
    items, item = feature_set.items, int(rows["item"][i])
    found = [*flags(rows["hour"][i], HOURS), rows["load"][i], rows["item_rate"][i]]
    found += [*flags(items["genre"][item], GENRES), *flags(items["tags"][item], TAGS), items["price"][item]]
    found += flags(feature_set.users["segment"][rows["user"][i]], SEGMENTS)
    end, length = int(rows["history_end"][i]), int(rows["history_len"][i])
    past = list(range(end - length, end))
    found.append(math.log(1 + length))
    weights = [[1.0] * length, [float(place >= length - 10) for place in range(length)]]
    for space in ("text", "image", "tags", "genre"):
        cosines = [alike(feature_set, space, item, int(events["item"][p])) for p in past]
        filled = sorted(cosines + [0.0] * (HISTORY_LEN - length), reverse=True)
        found += [filled[0], sum(filled[:5]) / 5, sum(cosines) / max(length, 1)]
        weights.append([math.exp(4 * c) for c in cosines])
    said = [
        [*flags(events["label"][p], 2), 0.0 if math.isnan(events["residual"][p]) else events["residual"][p]]
        for p in past
    ]
    for weight in weights:
        for number in range(3):
            total = sum(w * s[number] for w, s in zip(weight, said, strict=True))
            found.append(total / sum(weight) if length else 0.0)
    prices = [0.0 if math.isnan(price) else price for price in (float(items["price"][events["item"][p]]) for p in past)]
    return [*found, items["price"][item] - sum(prices) / max(length, 1)]


def test_rows_of_a_feature_set_as_plain_loops_make_them(feature_set):
    lengths, without = [], 0
    for split in ("train", "valid"):
        wanted = []
        for rows, events in zip(feature_set.rows(split), feature_set.events(split), strict=True):
            wanted += [literal_row(feature_set, rows, events, i) for i in range(len(rows["item"]))]
            lengths += rows["history_len"].tolist()
            without += int((~feature_set.present("image")[rows["item"]]).sum())
        found = feature_rows(feature_set, split)
        assert found.dtype == np.float32 and np.isnan(found).any()
        np.testing.assert_allclose(found, np.array(wanted, np.float64), rtol=1e-6, atol=1e-6)
    # Empty, short and full histories, and targets without an image, are among them.
    assert {0, 1, 4, HISTORY_LEN} <= set(lengths) and without


def test_without_past_a_row_is_its_columns_alone(feature_set):
    every, alone = feature_rows(feature_set, "valid"), feature_rows(feature_set, "valid", past=False)
    own = HOURS + 2 + GENRES + TAGS + 1 + SEGMENTS
    assert alone.shape[1] == own < every.shape[1]
    np.testing.assert_array_equal(alone, every[:, :own])


PRICED = Schema(
    items=6,
    users=3,
    item=(Field(name="id", kind="categorical", size=6), Field(name="price", kind="numeric")),
    user=(Field(name="user", kind="categorical", size=3),),
    event=(Field(name="said", kind="numeric"),),
    vectors=(VectorSet(name="text", width=2),),
    history_max_len=4,
)


def past_of(cosines: list[float], said: list[float], prices: list[float], positions: int) -> torch.Tensor:
    """Features of one row whose target costs 10, at these cosines to its events, newest last."""
    length = len(cosines)
    features = TabularFeatures(PRICED, past=True)
    angle = np.arccos(cosines)
    units = torch.tensor([[0, 0], [1, 0], *([math.cos(a), math.sin(a)] for a in angle)], dtype=torch.float64)
    columns = [torch.arange(2 + length), torch.tensor([math.nan, 10.0, *prices])]
    block = features.item_block(columns)
    history_BS = torch.zeros(1, positions, dtype=torch.int64)
    events_BS = torch.zeros(1, positions)
    if length:
        history_BS[0, -length:] = torch.arange(2, 2 + length)
        events_BS[0, -length:] = torch.tensor(said)
    history = BatchHistory(features.item_numbers(block), torch.tensor([1]), history_BS, [events_BS], None, [units])
    return features([], [], [], block[[1]], history)[0]


@pytest.mark.parametrize("positions", [2, 4, 5])
def test_features_of_a_past_by_hand(positions):
    # Two events before the row, at cosines 0.6 and 0: they said 1 and -1 and cost 4 and an unknown price.
    found = past_of([0.6, 0.0], [1.0, -1.0], [4.0, math.nan], positions)
    first, second = math.exp(4 * 0.6), 1.0
    weighted = (first * 1 - second * 1) / (first + second)
    # Price; length; highest, mean of nearest four, mean; plain, newest and weighted means; distance to (4 + 0) / 2.
    expected = [10.0, math.log(3), 0.6, 0.6 / 4, 0.3, 0.0, 0.0, weighted, 8.0]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("positions", [4, 5])
def test_a_full_past_has_no_cosine_of_zero_to_fill_it(positions):
    # A request's graph has a position of padding in front even where the history is full.
    found = past_of([-0.5, -0.25, -0.75, -1.0], [0.0] * 4, [1.0] * 4, positions)
    np.testing.assert_allclose(found[2:5], [-0.25, -0.625, -0.625], rtol=1e-6)


def test_an_empty_past_is_finite_zeros_but_for_the_price():
    assert past_of([], [], [], 3).tolist() == [10.0, 0, 0, 0, 0, 0, 0, 0, 10.0]


def test_small_vocabularies_become_one_feature_a_value():
    fields = (
        Field(name="a", kind="categorical", size=4),
        Field(name="b", kind="tags", size=4, max_len=2),
        Field(name="big", kind="categorical", size=500),
        Field(name="names", kind="tags", size=500, max_len=2),
        Field(name="n", kind="numeric"),
    )
    schema = PRICED.model_copy(update={"item": (PRICED.item[0], *fields)})
    columns = [
        torch.tensor([2, 3]),
        torch.tensor([3, 1]),
        torch.tensor([[2, 3], [2, 0]]),
        torch.tensor([77, 1]),
        torch.tensor([[77, 0], [1, 0]]),
        torch.tensor([0.5, math.nan]),
    ]
    features = TabularFeatures(schema, past=False)
    block = features.item_block(columns)
    # The item table holds the last one as 0 and a flag; trees read it as missing.
    np.testing.assert_array_equal(block, [[0, 1, 1, 1, 77, 0.5, 0], [0, 0, 1, 0, 1, 0, 1]])
    found = features([], [], [], block, None)
    np.testing.assert_array_equal(found, [[0, 1, 1, 1, 77, 0.5], [0, 0, 1, 0, 1, np.nan]])
    assert features.width == 6 and features.item_width == 7


def test_a_column_of_more_values_than_a_float_tells_apart_is_refused():
    wide = Field(name="brand", kind="categorical", size=2**24 + 1)
    schema = PRICED.model_copy(update={"item": (PRICED.item[0], wide)})
    with pytest.raises(ConfigError, match=r"brand.*leave out model\.base"):
        TabularFeatures(schema, past=False)


def test_items_without_any_column():
    schema = PRICED.model_copy(update={"item": PRICED.item[:1], "vectors": ()})
    features = TabularFeatures(schema, past=True)
    block = features.item_block([torch.tensor([0, 2, 3])])
    assert block.tolist() == [[0], [0], [0]] and features.item_width == 1
    events = [torch.tensor([[0.0, 4.0]])]
    history = BatchHistory(features.item_numbers(block), torch.tensor([1]), torch.tensor([[0, 2]]), events, None)
    # The column of nothing; one event that said 4: length, its mean, its mean over the newest.
    np.testing.assert_allclose(features([], [], [], block[[1]], history), [[0, math.log(2), 4, 4]], rtol=1e-6)
