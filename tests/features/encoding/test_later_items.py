"""Ids that came after a catalogue: rows behind it, whatever way they are asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from features.build.build import build_feature_set
from features.calendar import DAY
from features.encoding.encoder import Encoder
from features.encoding.later_items import LaterIds, with_later_items
from features.encoding.request import parse_request
from features.encoding.snapshot import CounterState
from features.encoding.vocabulary import Vocabulary
from features.point_in_time.live_counters import LiveCounter
from tests.features.raw import raw_log

# Numbers close together, far apart, and text: three ways to look them up.
KINDS: dict[str, tuple[list[Any], list[Any], list[Any]]] = {
    "dense": ([10, 20, 30, 40], [15, 50], [30, 10]),
    "sparse": ([10, 2**40, 2**50, 2**60], [15, 2**45], [2**50, 10]),
    "text": (["a", "c", "e", "g"], ["b", "z"], ["e", "a"]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_go_on_behind_the_catalogue(kind: str) -> None:
    """Catalogue rows are 2 to 5; new ids get 6 and 7, changed ones 8 and 9; the others stay."""
    known, new, changed = KINDS[kind]
    ids = LaterIds(Vocabulary(pl.Series(known)), pl.Series(new), pl.Series(changed))
    unknown = "nobody" if kind == "text" else 99
    asked = [*known, *new, unknown]
    rows = [9, 3, 8, 5, 6, 7, 1]
    assert ids.encode(pl.Series([*asked, None])).tolist() == [*rows, 1]
    assert [ids.index(one) for one in asked] == rows and ids.index(None) == 1
    assert ids.indices(asked).tolist() == rows and ids.indices(asked).dtype == np.int64
    assert ids.indices(asked * 20).tolist() == rows * 20
    assert [ids.value(row) for row in rows[:-1]] == asked[:-1]


def test_without_changed_ids_the_catalogue_alone_goes_on() -> None:
    known = pl.Series([5, 3])
    ids = LaterIds(Vocabulary(known), pl.Series([4]), known[:0])
    assert ids.indices([3, 4, 5, 6]).tolist() == [3, 4, 2, 1] and ids.value(4) == 4


def test_counters_are_those_of_an_id_without_rows_or_stay(tmp_path: Path) -> None:
    counters = {"seen": {"of": "item", "value": "count"}, "rate": {"of": "item", "value": "rate", "prior": 2.0}}
    contract = raw_log(tmp_path, over={"counters": counters})
    encoder = Encoder.load(build_feature_set(contract, tmp_path / "out").feature_set.path)
    later = with_later_items(encoder, pl.Series("item_id", [900]), pl.Series("item_id", [105]))
    log = pl.read_parquet(tmp_path / "log.parquet")
    of_105 = log.filter(pl.col("item_id") == 105)
    row = later.items.indices([900, 105, 106])
    assert row.tolist() == [encoder.schema.items, encoder.schema.items + 1, encoder.items.index(106)]
    assert later.schema.items == encoder.schema.items + 2
    assert later.snapshot.items["seen"][row[:2]].tolist() == [0, len(of_105)]
    mean = encoder.snapshot.items["rate"][encoder.items.index(105)]
    assert later.snapshot.items["rate"][row[1]] == mean
    train = log.sort("time").head(round(0.7 * len(log)))
    assert later.snapshot.items["rate"][row[0]] == pytest.approx((train["rating"] >= 4).mean(), abs=0.05)
    request = parse_request({"candidates": [900, 105, 106]}, contract)
    encoded, before = later.encode_request(request), encoder.encode_request(request)
    assert encoded.unknown_candidates == () and before.unknown_candidates == (900,)
    for name in counters:
        assert encoded.candidate[name].tolist() == before.candidate[name].tolist()


def test_further_keys_of_a_counter_begin_as_those_that_they_stand_for() -> None:
    """Keys 0 to 3; 4 begins as 1, 5 and 7 as 3, 6 as 0. Open entries stand at 3, 1, 3 and 2."""
    some = np.array([0.0, 5.0, 6.0, 7.0])
    state = CounterState(
        some, some / 10, np.array([0, 50, 60, 70]),
        np.array([3, 1, 3, 2]), np.array([71, 51, 72, 61]), np.array([1.0, 2, 3, 4]), np.array([0.1, 0.2, 0.3, 0.4]),
    )  # fmt: skip
    grown = state.with_copies(np.array([1, 3, 0, 3]))
    assert grown.count.tolist() == [0, 5, 6, 7, 5, 7, 0, 7] and grown.time.tolist() == [0, 50, 60, 70, 50, 70, 0, 70]
    assert grown.total.tolist() == (grown.count / 10).tolist()
    entries = zip(grown.open_row, grown.open_time, grown.open_count, grown.open_total, strict=True)
    before = [(1, 51, 2, 0.2), (2, 61, 4, 0.4), (3, 71, 1, 0.1), (3, 72, 3, 0.3)]
    copied = [(4, 51, 2, 0.2), (5, 71, 1, 0.1), (5, 72, 3, 0.3), (7, 71, 1, 0.1), (7, 72, 3, 0.3)]
    assert sorted(entries) == [*before, *copied]
    assert state.with_copies(np.array([], np.int64)).open_row.tolist() == [3, 1, 3, 2]


@pytest.mark.parametrize("as_of", ["event", "day"])
def test_counters_go_on_by_events(tmp_path: Path, as_of: str) -> None:
    """Of a changed item from what the log had, its newest day included; of a new one from nothing."""
    contract = raw_log(tmp_path, over={"counters": {"seen": {"of": "item", "value": "count", "as_of": as_of}}})
    encoder = Encoder.load(build_feature_set(contract, tmp_path / "out").feature_set.path)
    later = with_later_items(encoder, pl.Series("item_id", [900]), pl.Series("item_id", [105, 104]))
    live = LiveCounter(contract.counters["seen"], 0.0, later.snapshot.states["seen"])
    asked = [900, 105, 104, 106]
    row_E, next_day = later.items.indices([900, 900, 105]), later.snapshot.newest + 2 * DAY
    live.add(row_E, np.full(3, next_day - 1), np.zeros(3))
    log = pl.read_parquet(tmp_path / "log.parquet")["item_id"]
    added = {900: 2, 105: 1}
    assert live.values(next_day + DAY)[later.items.indices(asked)].tolist() == [
        (log == item).sum() + added.get(item, 0) for item in asked
    ]
    assert len(encoder.snapshot.states["seen"].count) == encoder.schema.items
