"""Ids that nobody has seen for long have no row of their own: in a first build, and in one that extends it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from features.build.build import build_feature_set
from features.contract.contract import Contract
from features.encoding.encoder import Encoder
from features.errors import ConfigError
from features.store.feature_set import FeatureSet
from tests.features.build.days import FIRST, contract

MIDNIGHT = 1_772_323_200  # of the first day


def write(folder: Path, day: int, items: list[int]) -> None:
    """One row an item at noon of a day; each item twice."""
    (folder / "log").mkdir(exist_ok=True)
    rows = len(items) * 2
    pl.DataFrame(
        {
            "user": [1, 2] * len(items),
            "item": items * 2,
            "time": [MIDNIGHT + 86_400 * day + 43_200 + row for row in range(rows)],
            "rating": [5, 1] * len(items),
            "device": ["phone"] * rows,
            "load": [0.5] * rows,
        }
    ).write_parquet(folder / f"log/day-{day}.parquet")
    pl.DataFrame({"item": list(range(100, 120)), "genre": ["jazz"] * 20}).write_parquet(folder / "items.parquet")


def build(declared: Contract, day: int, window: int = 6) -> FeatureSet:
    as_of = FIRST.replace(day=FIRST.day + day).isoformat()
    return build_feature_set(declared, Path(declared.root) / "out", as_of=as_of, window=window).feature_set


def ids(feature_set: FeatureSet) -> list[int]:
    values: list[int] = Encoder.load(feature_set.path).item["item"].vocabulary.values.to_list()  # type: ignore[attr-defined]
    return values


@pytest.mark.parametrize(
    ("over", "expected"),
    [
        ({}, [[101, 102, 103], [101, 102, 103, 104, 105]]),
        # On day 3 the training window ends on day 1. On day 5 it ends on day 3: 101 and 102 were last seen two days
        # before, and 104 takes the index of the first of them. What is new on the last days is in no training row.
        ({"item_max_idle": "36h"}, [[101, 102, 103], [104, 105, 103]]),
        ({"item_max_idle": "10d"}, [[101, 102, 103], [101, 102, 103, 104, 105]]),
    ],
)
def test_a_new_id_takes_the_index_of_one_that_is_idle(
    tmp_path: Path, over: dict[str, Any], expected: list[list[int]]
) -> None:
    for day, items in enumerate([[101, 102], [101, 102, 103], [103, 104], [103, 105, 104], [106], [106]]):
        write(tmp_path, day, items)
    declared = contract(tmp_path, {"interactions": over})
    found = [build(declared, day) for day in (3, 5)]
    assert [ids(one) for one in found] == expected
    # Every row of the item table has the index of its own id; that of an id without one is unknown.
    encoder = Encoder.load(found[1].path)
    for row, value in enumerate(encoder.items.values.to_list(), 2):
        index = expected[1].index(value) + 2 if value in expected[1] else 1
        assert found[1].items["item"][row] == index, value


def test_a_first_build_leaves_idle_ids_out_and_keeps_one_at_the_limit(tmp_path: Path) -> None:
    """Days 0 to 2 train. The newest row is of day 2 at noon and a second, the newest of 102 just a day before it."""
    for day, items in enumerate([[101], [102], [103], [104], [104]]):
        write(tmp_path, day, items)
    declared = contract(tmp_path, {"interactions": {"item_max_idle": "1d"}})
    assert ids(build(declared, 4)) == [102, 103]
    assert ids(build(contract(tmp_path), 4)) == [101, 102, 103]


def test_idle_ids_need_times(tmp_path: Path) -> None:
    over = {
        "interactions": {"time": None, "user_max_idle": "1d"},
        "split": {"by": "files", "valid": "v", "test": "t"},
        "history": {"given": {"column": "past"}, "columns": {}},
    }
    with pytest.raises(ConfigError, match="user_max_idle: needs times of the rows"):
        contract(tmp_path, over)
