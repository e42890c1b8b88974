"""Windowed builds carry the past on: counters, co-clicks, and the events before the window."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest

from features.build import build as build_module
from features.build.history_tail import Events, HistoryTail, tails_suffice
from features.contract.contract import Contract
from features.encoding.encoder import Encoder
from features.encoding.vocabulary import Vocabulary
from features.errors import DataError
from features.point_in_time import counter_pass
from tests.features.build.days import (
    COUNTED,
    assert_equal,
    build,
    contract,
    day_of_log,
    kept_files,
    without_device,
    write_days,
)
from tests.features.chunks import chunk_of
from tests.features.decoded import decoded


@pytest.fixture
def same_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rate is drawn towards the mean of the first build's training window: another one by design, here always 0.4."""
    monkeypatch.setattr(counter_pass, "label_mean", lambda stream, splitter: 0.4)


def test_counters_added_day_by_day_equal_those_built_at_once(tmp_path: Path, same_mean: None) -> None:
    write_days(tmp_path, range(10))
    declared = without_device(tmp_path, COUNTED)
    for number in (7, 8, 9):
        last = build(declared, number)
    assert_equal(last, build(declared, 9, out="other"))


def test_counters_and_residuals_reach_back_before_the_window(tmp_path: Path) -> None:
    """Window of days 2 to 8: the counter of its first rows counts the rows of days 0 and 1."""
    write_days(tmp_path, range(9))
    rows = decoded(build(without_device(tmp_path, COUNTED), 8))
    log = pl.concat(day_of_log(number) for number in range(9))
    second_day = int(datetime(2026, 3, 3, tzinfo=UTC).timestamp())
    for row in (row for row in rows if row["time"] < (second_day + 86_400) * 1_000_000):
        before = log.filter(pl.col("user") == row["user"], pl.col("time") < second_day).height
        assert row["user_count"] == pytest.approx(before, abs=1e-3)
        assert None not in row["history.surprise"]
    assert max(row["user_count"] for row in rows if row["time"] < (second_day + 86_400) * 1_000_000) > 3


def test_a_rate_keeps_its_mean_and_its_scale(tmp_path: Path) -> None:
    write_days(tmp_path, range(10))
    declared = without_device(tmp_path, COUNTED)
    before, after = build(declared, 8), build(declared, 9)
    assert after.manifest.label_mean == before.manifest.label_mean
    train = pl.concat(day_of_log(number) for number in range(2, 7))
    assert before.manifest.label_mean == pytest.approx((train["rating"] >= 4).mean())
    scales = [
        [(one.mean, one.deviation) for one in (Encoder.load(built.path).candidate["item_rate"],)]
        for built in (before, after)
    ]
    assert scales[0] == scales[1]
    assert len(kept_files(before, after)) == 12


def test_co_clicks_of_an_added_day_are_those_of_the_whole_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_days(tmp_path, range(10))
    vectors = {"item_id": np.arange(100, 148), "vector": np.random.default_rng(0).normal(size=(48, 4)).tolist()}
    pl.DataFrame(vectors).write_parquet(tmp_path / "text.parquet")
    over = {"embeddings": {"text": {"path": "text.parquet", "missing": {"by": "clicks", "k": 3}}}}
    seen = []
    made = build_module.build_vectors

    def spy(declared: Any, items: Any, trained: Any, columns: Any, clicks: Any, *rest: Any) -> Any:
        seen.append(sorted(zip(clicks.user_C.tolist(), clicks.item_C.tolist(), strict=True)))
        return made(declared, items, trained, columns, clicks, *rest)

    monkeypatch.setattr(build_module, "build_vectors", spy)
    for number in (8, 9):
        built = build(contract(tmp_path, over), number)
    encoder = Encoder.load(built.path)
    train = pl.concat(day_of_log(number) for number in range(3, 8)).filter(pl.col("rating") >= 4)
    users, items = encoder.users.encode(train["user"]), encoder.items.encode(train["item"])
    assert len(seen) == 2 and seen[1] == sorted(zip(users.tolist(), items.tolist(), strict=True))


@pytest.mark.parametrize(
    ("over", "carries"),
    [
        ({}, True),
        ({"history": {"within": "3d", "repeats": "consecutive"}}, True),
        ({"history": {"repeats": "first"}}, False),
        ({"counters": {"seen": {"of": "item", "value": "count"}}}, False),
        ({"history": {"tables": [{"path": "past.parquet", "user": "u", "item": "i", "time": "t"}]}}, False),
    ],
    ids=["plain", "consecutive", "first", "counters", "tables"],
)
def test_events_are_carried_on_where_the_newest_are_all_that_is_needed(
    tmp_path: Path, over: Any, carries: bool
) -> None:
    assert tails_suffice(contract(tmp_path, over)) is carries


def test_a_carried_event_that_the_log_has_too_is_refused() -> None:
    shard = chunk_of(user=[2, 2], item=[5, 6], time=[10, 20], context={"hour": np.array([3, 4])})
    events = Events(shard.user, shard.item, shard.time, {"pause": np.array([7, 8])})
    tail = HistoryTail(Path("old/history_tails/part-00000.arrow"), events, events.take(np.arange(0)))
    with pytest.raises(DataError, match=r"old/history_tails/part-00000.arrow: 2 of its events are in the new rows"):
        tail.onto(shard)
    # Twice in the log is the log's own affair (`checks.duplicate`), and so is a row that is no event.
    joined = tail.onto(replace(shard, time=np.array([30, 30]), item=np.array([7, 7], np.int32)))
    assert joined.item.tolist() == [5, 6, 7, 7]
    assert joined.is_row.tolist() == [False, False, True, True]
    assert joined.is_from_tail is not None and joined.is_from_tail.tolist() == [True, True, False, False]
    assert joined.context["hour"].tolist() == [0, 0, 3, 4] and joined.events["pause"].tolist() == [7, 8, 0, 0]
    assert tail.onto(replace(shard, is_event=np.zeros(2, bool))).item.tolist() == [5, 6, 5, 6]


@pytest.mark.parametrize("columns", [{"pause": {"type": "gap"}}, {}], ids=["gap", "consecutive"])
def test_an_event_older_than_the_history_decides_what_a_younger_one_is(tmp_path: Path, columns: Any) -> None:
    """`within: 1d`, yet a file of a week ago changes yesterday's event: the pause before it, or whether it counts."""
    start = int(datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp())
    days = [0, 5, 6, 7]
    times = [start + day * 86_400 - 60 * day for day in days]
    log = pl.DataFrame({"user": [1, 2, 1, 1], "item": [9, 9, 9, 8], "time": times, "rating": 5, "load": 0.0})
    (tmp_path / "log").mkdir()
    for day, part in log.with_columns(day=pl.Series(days)).group_by("day"):
        part.drop("day").write_parquet(tmp_path / f"log/day-{day[0]:02d}.parquet")
    pl.DataFrame({"item": [8, 9], "genre": ["a", "b"]}).write_parquet(tmp_path / "items.parquet")
    content = without_device(tmp_path).model_dump(exclude_unset=True)
    repeats = "keep" if columns else "consecutive"
    content["history"] = {"max_len": 6, "within": "1d", "columns": columns, "repeats": repeats}
    declared = Contract.model_validate(content)
    build(declared, 7, window=3)
    old = tmp_path / "log/day-00.parquet"
    pl.read_parquet(old).with_columns(item=pl.lit(8, pl.Int64), time=pl.col("time") + 3 * 86_400).write_parquet(old)
    assert_equal(build(declared, 7, window=3), build(declared, 7, out="other", window=3))


def test_co_clicks_are_the_newest_of_a_log_sorted_by_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_module, "MOST_CLICKS", 3)
    log = {"_user": [2, 2, 2, 3, 3, 3], "_item": [5, 6, 7, 8, 9, 5], "_time": [6, 1, 5, 2, 4, 3], "_label": 1}
    catalogue = Vocabulary(pl.Series(range(2, 10), dtype=pl.Int64))
    encoder: Any = SimpleNamespace(users=catalogue, items=catalogue)
    clicks = build_module._clicks(encoder, pl.LazyFrame(log))
    pairs = zip(clicks.user_C.tolist(), clicks.item_C.tolist(), strict=True)
    assert sorted(pairs) == [(2, 5), (2, 7), (3, 9)]
