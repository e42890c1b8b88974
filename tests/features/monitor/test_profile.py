"""profile.json: counts worked out by hand, bins that two feature sets share, sampling, and the file itself."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.contract.columns import Buckets as BucketsSpec
from features.contract.columns import DatePart, Hashed
from features.encoding.base import ColumnEncoder
from features.encoding.category import CategoricalEncoder, HashedEncoder, TagsEncoder
from features.encoding.number import BucketsEncoder, NumericEncoder
from features.encoding.registry import ENCODERS
from features.encoding.time import DatePartEncoder, GapEncoder
from features.encoding.vocabulary import Vocabulary
from features.errors import DataError
from features.monitor.drift.compare import compare
from features.monitor.profile import counts as profile_rows
from features.monitor.profile.bins import (
    GRID_BINS,
    GROUPS,
    LISTED,
    PERIODS,
    edge_bins,
    grid_bin,
    grid_of,
    grid_place,
    rest_bin,
    value_bins,
)
from features.monitor.profile.decode import Intervals, Scale, reader_of
from features.monitor.profile.file import load_profile
from features.monitor.profile.write import _numbers
from tests.features.by_hand import CATEGORY, LOG_COST, NUMBER, TAGS, profiled

DAY = 86_400_000_000
FIRST = 20_000 * DAY  # 2024-10-04

# Two users, seven rows: (user, item, day, label, split, device, speed, action).
ROWS = [
    ("ann", 1, 0, 1, 0, "tv", 1.0, "buy"),
    ("ann", 2, 0, 0, 0, "phone", 2.0, "view"),
    ("ann", 1, 1, 0, 0, "phone", None, "view"),
    ("bob", 3, 1, 1, 0, None, 4.0, None),
    ("bob", 1, 2, 0, 0, "phone", 5.0, "view"),
    ("ann", 3, 3, 1, 2, "tv", 6.0, "buy"),
    ("bob", 2, 3, None, 2, None, None, "buy"),
]
NAMES = ("user", "item", "day", "label", "split", "device", "speed", "action")
ITEMS = pl.DataFrame(
    {
        "item": [1, 2, 3, 4],
        "genre": ["drama", "noir", None, "noir"],
        "price": [10.0, None, 30.0, 40.0],
        "tags": [["a", "b"], ["b"], [], ["c"]],
    }
)
USERS = pl.DataFrame({"user": ["ann", "bob", "eve"], "country": ["NL", None, "BR"]})
COLUMNS = {
    "context": {"device": CATEGORY, "speed": NUMBER},
    "event": {"action": CATEGORY},
    "item": {"genre": CATEGORY, "price": LOG_COST, "tags": TAGS},
    "user": {"country": CATEGORY},
}


def small_log() -> pl.DataFrame:
    log = pl.DataFrame(ROWS, schema=list(NAMES), orient="row")
    return log.with_columns(time=FIRST + pl.col("day") * DAY + pl.int_range(pl.len()) * 1_000_000)


def small(folder: Path, **changes: Any) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    return profiled(folder, **{"log": small_log(), "items": ITEMS, "users": USERS, "columns": COLUMNS} | changes)


def test_a_small_log_by_hand(tmp_path: Path) -> None:
    profile = small(tmp_path, vectors={"text": {1, 3, 4}})
    train, test = profile.splits["train"], profile.splits["test"]
    assert (profile.items, profile.users, profile.sampled_one_in) == (4, 3, 1)
    assert profile.vector_coverage == {"text": 0.75}
    assert profile.splits.keys() == {"train", "test"}  # no rows validate
    assert (train.rows, train.label_rate) == (5, 0.4)
    # One of the two test rows has no label.
    assert (test.rows, test.label_rate) == (2, 1.0)
    assert {day: (one.rows, one.label_rate) for day, one in train.days.items()} == {
        "2024-10-04": (2, 0.5),
        "2024-10-05": (2, 0.5),
        "2024-10-06": (1, 0.0),
    }
    # Lengths 0, 1, 2 of ann, 0, 1 of bob; in test 3 and 2.
    assert [train.history_length[name] for name in ("0", "1", "2-4")] == [2, 2, 1]
    assert test.history_length["2-4"] == 2 and sum(test.history_length.values()) == 2
    # Items of the rows: 1 2 1 3 1; items 1 and 3 have a vector; clicked are 1 and 3.
    assert (train.vectors["text"].rows, train.vectors["text"].clicks) == (0.8, 1.0)
    assert (test.vectors["text"].rows, test.vectors["text"].clicks) == (0.5, 1.0)

    columns = train.columns
    assert columns["context.device"].missing == 1 and columns["context.device"].missing_share == 0.2
    assert columns["context.device"].top == {"phone": 0.75, "tv": 0.25} and columns["context.device"].vocabulary == 2
    speed = columns["context.speed"].numbers
    # 1, 2, 4 and 5 are known.
    assert columns["context.speed"].missing == 1 and speed is not None
    assert speed.mean == 3.0 and speed.quantiles["0"] == 1.0 and speed.quantiles["0.5"] == 3.0
    assert speed.quantiles["1"] == 5.0
    # As the rows see the items: drama three times, noir once, item 3 has none.
    assert columns["item.genre"].top == {"drama": 0.75, "noir": 0.25} and columns["item.genre"].missing == 1
    assert columns["item.item"].top == {"1": 0.6, "2": 0.2, "3": 0.2}
    # Tags: item 1 brings a and b (three rows), item 2 b; item 3 has none.
    assert columns["item.tags"].top == {"b": 0.5714, "a": 0.4286} and columns["item.tags"].missing == 1
    price = columns["item.price"].numbers
    assert price is not None and price.quantiles["0.5"] == 10.0 and price.quantiles["1"] == 30.0
    assert columns["item.price"].missing_share == 0.2
    assert columns["user.user"].top == {"ann": 0.6, "bob": 0.4}
    assert columns["user.country"].top == {"NL": 1.0} and columns["user.country"].missing == 2
    # The newest event of the three rows that have a history: buy, view, and bob's unknown one.
    assert columns["event.action"].top == {"buy": 0.5, "view": 0.5}
    assert (columns["event.action"].missing, columns["event.action"].missing_share) == (1, 0.333333)


def test_tallies_count_days_and_groups_of_users(tmp_path: Path) -> None:
    profile = small(tmp_path)
    tally, bins = profile.tallies["train"]["context.device"], profile.bins["context.device"]
    assert bins.names == ("phone", "tv") and bins.rest == 0  # type: ignore[union-attr]
    assert profile.periods == ("2024-10-04", "2024-10-05", "2024-10-06", "2024-10-07")
    assert tally.periods == ((1, 1, 0), (1, 0, 1), (1, 0, 0), ())
    # ann is user row 2, bob row 3.
    assert tally.groups[2] == (2, 1, 0) and tally.groups[3] == (1, 0, 1) and len(tally.groups) == GROUPS
    assert [sum(map(sum, one)) for one in (tally.periods, tally.groups)] == [5, 5]
    # Rows without a history have no newest event; rows without a label count nowhere.
    assert sum(map(sum, profile.tallies["train"]["event.action"].periods)) == 3
    assert sum(map(sum, profile.tallies["test"]["label"].periods)) == 1
    # Whose rows they are is no distribution.
    assert profile.bins["user.user"].names == ("known",)  # type: ignore[union-attr]


def test_every_type_of_column_is_profiled(tmp_path: Path) -> None:
    columns = COLUMNS | {
        "context": {
            "device": Hashed(type="hashed", buckets=4),
            "speed": BucketsSpec(type="buckets", edges=(1.5, 4.5)),
            "hour": DatePart(type="date", part="hour", time_unit="us"),
        }
    }
    profile = small(tmp_path, log=small_log().with_columns(hour="time"), columns=columns)
    found = profile.splits["train"].columns
    # Speeds 1, 2, none, 4, 5; all rows are of the first hour of a day.
    assert found["context.speed"].top == {"1.5 to 4.5": 0.5, "-inf to 1.5": 0.25, "4.5 to inf": 0.25}
    assert found["context.speed"].missing == 1 and found["context.hour"].top == {"0": 1.0}
    assert sum((found["context.device"].top or {}).values()) == 1.0
    assert not compare(profile, profile).found


def test_parts_change_nothing(tmp_path: Path) -> None:
    for parts in (1, 2, 3):
        small(tmp_path / str(parts), parts=parts, vectors={"text": {1}})
    texts = {(tmp_path / str(parts) / "profile.json").read_text() for parts in (1, 2, 3)}
    assert len(texts) == 1


def test_sampling_leaves_the_exact_counts_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    rows = 4_000
    log = pl.DataFrame(
        {
            "user": rng.integers(1, 100, rows),
            "item": rng.integers(1, 5, rows),
            "label": rng.integers(0, 2, rows),
            "device": rng.choice(["tv", "phone", None], rows),
            "speed": rng.random(rows),
            "action": rng.choice(["a", "b", None], rows),
            "split": rng.integers(0, 3, rows),
            "time": FIRST + rng.integers(0, 9 * DAY, rows),
        }
    )
    users = pl.DataFrame({"user": np.arange(1, 100), "country": ["NL"] * 99})
    whole = small(tmp_path / "whole", log=log, users=users, parts=3)
    monkeypatch.setattr(profile_rows, "SAMPLE", 500)
    thin, again = (small(tmp_path / name, log=log, users=users, parts=3) for name in ("thin", "again"))
    assert thin == again and thin.sampled_one_in == 8
    counted = sum(map(sum, thin.tallies["train"]["context.device"].periods))
    assert whole.splits["train"].rows / 8 - 3 <= counted <= whole.splits["train"].rows / 8 + 3
    for name, split in whole.splits.items():
        other = thin.splits[name]
        for key in ("rows", "label_rate", "history_length", "vectors", "days"):
            assert getattr(split, key) == getattr(other, key)
        for column, one in split.columns.items():
            assert one.missing == other.columns[column].missing


def test_many_days_are_counted_in_runs(tmp_path: Path) -> None:
    rows = 150
    log = pl.DataFrame(
        {
            "user": ["ann"] * rows,
            "item": [1] * rows,
            "label": [0] * rows,
            "split": [0] * rows,
            "device": ["tv"] * rows,
            "speed": [1.0] * rows,
            "action": ["a"] * rows,
            "time": FIRST + np.arange(rows) * 2 * DAY,
        }
    )
    profile = small(tmp_path, log=log)
    assert len(profile.splits["train"].days) == rows
    # 150 days with rows, three to a period.
    assert len(profile.periods) == 50 <= PERIODS and profile.periods[1] == "2024-10-10"
    assert {sum(row) for row in profile.tallies["train"]["label"].periods} == {3}


def test_the_file_is_read_back_and_found_by_folder_and_pointer(tmp_path: Path) -> None:
    profile = small(tmp_path / "v1")
    (tmp_path / "CURRENT").write_text("v1")
    for path in (tmp_path, tmp_path / "v1", tmp_path / "v1" / "profile.json"):
        assert load_profile(path) == profile
    lines = (tmp_path / "v1" / "profile.json").read_text().splitlines()
    assert max(map(len, lines)) < 300
    assert any('"context.device": {"missing": 1, "missing_share": 0.2' in line for line in lines)


def test_what_is_no_profile_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"profile\.json: no such file.*quadrank features"):
        load_profile(tmp_path)
    (tmp_path / "profile.json").write_text(json.dumps({"items": 3, "splits": {}}))
    with pytest.raises(DataError, match=r"not a profile of format 1 \(\d+ problems\)\. Build the feature set again"):
        load_profile(tmp_path)


def test_a_profile_of_another_format_is_refused(tmp_path: Path) -> None:
    small(tmp_path)
    file = tmp_path / "profile.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 7}))
    with pytest.raises(
        DataError, match=r"profile\.json: is of format 7, .* reads format 1\. Build the feature set again"
    ):
        load_profile(tmp_path)


def test_listed_values_are_the_most_frequent_with_ties_by_name() -> None:
    names = [f"v{i:02d}" for i in range(40)]
    counts = np.full(42, 5)
    counts[2 + 39], counts[0] = 9, 1_000
    seen = np.flatnonzero(np.arange(42) != 2)  # value 0 does not occur
    bins, bin_d = value_bins(names, seen, counts[seen])
    bin_v = np.full(42, -9)
    bin_v[seen] = bin_d
    assert bins.names == ("v39", *names[1:LISTED]) and bins.rest == 8
    assert bin_v[0] == -1 and bin_v[1] == bins.size - 1 == LISTED + 8
    assert bin_v[2 + 39] == 0 and bin_v[2 + 1] == 1
    assert bin_v[2 + 35] == LISTED + rest_bin("v35")


def test_the_rest_is_told_apart_by_a_frozen_hash() -> None:
    # CRC-32 of "123456789" is 0xCBF43926, the check value of its definition.
    assert rest_bin("123456789") == 0xCBF43926 % 8 == 6


def test_a_column_of_many_hash_buckets_is_profiled_in_the_memory_of_its_rows(tmp_path: Path) -> None:
    """5 million buckets: a text of each would be 300 MB, a count of each 40 MB."""
    rows = 300
    log = pl.DataFrame(
        {
            "user": np.arange(rows) % 7,
            "item": np.arange(rows) % 11,
            "time": np.arange(rows) * 3_600_000_000,
            "label": np.arange(rows) % 2,
            "split": np.zeros(rows, np.int8),
            "query": [f"q{i % 40}" for i in range(rows)],
        }
    )
    items, users = pl.DataFrame({"item": np.arange(11)}), pl.DataFrame({"user": np.arange(7)})
    tracemalloc.start()
    try:
        columns = {"context": {"query": Hashed(type="hashed", buckets=5_000_000)}}
        profile = profiled(tmp_path, log, items, users, columns)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20e6
    # q0 to q19 are in 8 rows each, the others in 7; of equal ones the first names, which are numbers of buckets.
    digests = [hashlib.sha256(f"q{i}".encode()).digest()[:8] for i in range(20)]
    buckets = sorted(str(int.from_bytes(one, "big") % 5_000_000) for one in digests)
    of_query = profile.splits["train"].columns["context.query"]
    assert of_query.vocabulary == 5_000_000
    assert of_query.top == dict.fromkeys(buckets[:10], 0.02667)  # 8 of 300


def test_buckets_keep_their_edges() -> None:
    bins, bin_v = edge_bins([1.0, 5.0])
    assert bins.edges == (1.0, 5.0) and bins.size == 4
    assert bin_v.tolist() == [-1, 3, 0, 1, 2]


def test_raw_numbers_come_back() -> None:
    scale = Scale(mean=2.0, deviation=0.5, transform="log1p")
    values = np.array([-4.0, 0.0, np.nan, -4.0 + 1e-7], np.float32)
    assert scale.raw(values)[:2].tolist() == pytest.approx([0.0, np.expm1(2.0)])
    assert np.isnan(scale.raw(values)[2]) and scale.raw(values)[3] == 0.0


@pytest.mark.filterwarnings("error")
def test_the_mean_of_the_largest_numbers_is_a_number() -> None:
    found = _numbers(np.array([1.6e308, 1.7e308, 1.5e308]))
    assert found.mean == 1.6e308
    assert found.quantiles["0.5"] == 1.6e308
    # Of five digits, 1.7977e308 is no float64: JSON has no infinity.
    assert _numbers(np.array([1.7976931348623157e308])).quantiles["1"] == 1.7976931348623157e308


def test_each_kind_of_encoder_is_read_back_by_what_it_learned() -> None:
    vocabulary = Vocabulary(pl.Series([7, 8]))
    encoders: dict[ColumnEncoder, Any] = {
        CategoricalEncoder(vocabulary): ["7", "8"],
        TagsEncoder(vocabulary, 3): ["7", "8"],
        HashedEncoder(3): ["0", "1", "2"],
        NumericEncoder("log1p", 2.0, 0.5): Scale(2.0, 0.5, "log1p"),
        BucketsEncoder([1.0, 2.5]): Intervals([1.0, 2.5]),
        DatePartEncoder("month", "s"): [str(month) for month in range(1, 13)],
        GapEncoder([2.0, 4.0]): Intervals([2.0, 4.0]),
    }
    for encoder, reader in encoders.items():
        found = reader_of(encoder)
        assert found == reader or [found.names[i] for i in range(len(reader))] == reader
    assert {type(encoder) for encoder in encoders} == set(ENCODERS.values())
    assert Intervals([1.0, 2.5]).names == ["-inf to 1", "1 to 2.5", "2.5 to inf"]
    assert reader_of(None) is None


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=60), st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_a_coarser_grid_is_made_of_bins_of_a_finer_one(values: list[float], shift: float, width: float) -> None:
    numbers = np.array(values)
    ours, theirs = grid_of(numbers), grid_of(shift + width * np.random.default_rng(0).normal(size=50))
    assert ours.inner <= GRID_BINS
    fine, coarse = sorted((ours.step, theirs.step))
    places = [grid_place(np.arcsinh(numbers), step).astype(np.int64) for step in (fine, coarse)]
    assert (places[0] >> (coarse - fine) == places[1]).all()


def test_zero_stays_in_one_bin_whatever_float32_makes_of_it() -> None:
    numbers = np.r_[np.zeros(50), np.arange(50.0)]
    grid = grid_of(numbers)
    specks = np.array([-1e-7, 0.0, 1e-7])
    assert len(set(grid_bin(grid, specks).tolist())) == 1
    assert grid_bin(grid, np.array([np.nan, -1e30, 1e30])).tolist() == [grid.size - 1, 0, grid.inner + 1]


@pytest.mark.parametrize("numbers", [[7.0] * 5, [0.0] * 5, [], [np.nan], [1e-9, 2e-9], [0.0, 5e-324], [-5.0, 1e12]])
def test_every_column_of_numbers_has_a_grid(numbers: list[float]) -> None:
    values = np.array(numbers)
    grid = grid_of(values)
    assert 1 <= grid.inner <= GRID_BINS
    assert ((grid_bin(grid, values) >= 0) & (grid_bin(grid, values) < grid.size)).all()
