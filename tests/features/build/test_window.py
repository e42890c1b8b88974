"""Windowed builds: a day is added without touching the others, and rows are those of a build at once."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from features.build import build as build_module
from features.build.build import build_feature_set
from features.contract.contract import Contract
from features.encoding.encoder import Encoder
from features.errors import ConfigError, DataError
from features.store.feature_set import MANIFEST
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


def test_a_day_is_added_and_the_others_stay_as_they_are(tmp_path: Path) -> None:
    write_days(tmp_path, range(10))
    before = build(contract(tmp_path), 8)
    after = build(contract(tmp_path), 9)
    assert after.path != before.path and set(after.manifest.days) - set(before.manifest.days) == {"2026-03-10"}
    # Six of the seven days; each has a file of rows and one of events.
    assert len(kept_files(before, after)) == 12
    after.verify()
    splits = {part.day: part.split for part in after.manifest.parts}
    assert [splits[f"2026-03-{day:02d}"] for day in (4, 8, 9, 10)] == ["train", "train", "valid", "test"]
    assert after.manifest.windows["test"].rows == 60


def test_days_that_other_code_built_are_built_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_days(tmp_path, range(10))
    before = build(contract(tmp_path), 8)
    monkeypatch.setattr("features.build.plan.code_hash", lambda: "a mend")
    assert kept_files(before, build(contract(tmp_path), 9)) == set()


@pytest.mark.parametrize(
    "over",
    [
        None,
        {"history": {"within": "3d"}},
        {"history": {"repeats": "consecutive", "session_gap": "12h"}},
        {"history": {"repeats": "first"}},
        {"history": {"delay": "30h"}},
        {"history": {"delay": "5h", "within": "3d", "repeats": "consecutive"}},
        {"interactions": {"request": "rating"}},
    ],
    ids=["plain", "within", "session", "first", "delay beyond a day", "delay and age", "requests"],
)
def test_added_day_by_day_equals_built_at_once(tmp_path: Path, over: Any) -> None:
    write_days(tmp_path, range(10))
    declared = without_device(tmp_path, over)
    for number in (7, 8, 9):
        last = build(declared, number)
    at_once = build(declared, 9, out="other")
    assert len(last.manifest.parts) == len(at_once.manifest.parts) == 7
    assert_equal(last, at_once)


def change_items(folder: Path) -> None:
    items = pl.read_parquet(folder / "items.parquet")
    items.with_columns(genre=pl.lit("opera")).write_parquet(folder / "items.parquet")


def test_a_rebuild_without_a_new_day_doubles_no_event(tmp_path: Path) -> None:
    write_days(tmp_path, range(10))
    declared = without_device(tmp_path)
    before = build(declared, 8)
    change_items(tmp_path)
    rebuilt = build(declared, 8)
    assert rebuilt.path != before.path
    tail = "history_tails/part-00000.arrow"
    assert (rebuilt.path / tail).stat().st_ino == (before.path / tail).stat().st_ino
    assert_equal(build(declared, 9), build(declared, 9, out="other"))


def test_a_day_after_a_retried_day_of_another_window(tmp_path: Path) -> None:
    write_days(tmp_path, range(10))
    declared = without_device(tmp_path)
    for number, window in ((8, 7), (8, 5), (9, 6)):
        last = build(declared, number, window=window)
    assert_equal(last, build(declared, 9, out="other", window=6))


def test_indices_never_move_and_new_values_come_after(tmp_path: Path) -> None:
    write_days(tmp_path, range(10))
    first, last = Encoder.load(build(contract(tmp_path), 7).path), Encoder.load(build(contract(tmp_path), 9).path)
    for old, new in (
        (first.items, last.items),
        (first.users, last.users),
        (first.item["item"].vocabulary, last.item["item"].vocabulary),
        (first.context["device"].vocabulary, last.context["device"].vocabulary),
    ):
        assert new.values.head(len(old.values)).to_list() == old.values.to_list()
        assert new.values.n_unique() == len(new.values)
    assert len(last.users.values) > len(first.users.values)
    assert len(last.context["device"].vocabulary.values) > len(first.context["device"].vocabulary.values)


def test_late_events_land_in_the_day_they_belong_to(tmp_path: Path) -> None:
    write_days(tmp_path, range(10))
    declared = without_device(tmp_path)
    before = build(declared, 9)
    # Of the seventh day, arrived with a file of its own.
    day_of_log(6, rows=5).with_columns(user=pl.lit(3, pl.Int64)).write_parquet(tmp_path / "log/late.parquet")
    after = build(declared, 9)
    changed = {day for day, key in after.manifest.days.items() if before.manifest.days[day] != key}
    assert changed == {"2026-03-07", "2026-03-08", "2026-03-09", "2026-03-10"}
    assert len(kept_files(before, after)) == 6
    rows = {part.day: part.window.rows for part in after.manifest.parts if part.window}
    assert rows["2026-03-07"] == 65
    assert_equal(after, build(declared, 9, out="other"))


def test_a_relative_root_stands_before_the_log_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_days(tmp_path / "data", range(8))
    monkeypatch.chdir(tmp_path)
    built = build(contract(Path("data")), 7)
    assert len(built.manifest.log_files) == 8


def test_the_same_input_again_is_the_same_version(tmp_path: Path) -> None:
    write_days(tmp_path, range(9))
    first = build_feature_set(contract(tmp_path), tmp_path / "out", as_of="2026-03-09", window=7)
    again = build_feature_set(contract(tmp_path), tmp_path / "out", as_of="2026-03-09", window=7)
    assert (first.reused, again.reused) == (False, True)


def test_a_later_day_changes_no_earlier_row(tmp_path: Path) -> None:
    write_days(tmp_path, range(10))
    whole = build(contract(tmp_path), 8)
    (tmp_path / "log/day-09.parquet").unlink()
    assert_equal(build(contract(tmp_path), 8, out="other"), whole)


@pytest.mark.parametrize(
    ("over", "window", "words"),
    [
        ({"split": {"by": "time", "valid": 0.1, "test": 0.1}}, 7, "--window: needs `split: {by: days"),
        ({}, 2, "--window 2d: leaves no day to train on beside 1 to validate and 1 to test"),
    ],
)
def test_windows_that_cannot_be(tmp_path: Path, over: Any, window: int, words: str) -> None:
    write_days(tmp_path, range(4))
    with pytest.raises(ConfigError, match=words.replace("{", r"\{")):
        build_feature_set(contract(tmp_path, over), tmp_path / "out", window=window)


def test_a_day_is_taken_from_whichever_version_has_it(tmp_path: Path) -> None:
    """The newest version is of another window: it lacks the first day, so that nothing could be taken from it."""
    write_days(tmp_path, range(10))
    declared = without_device(tmp_path)
    whole, short = build(declared, 8), build(declared, 8, window=5)
    after = build(declared, 9)
    assert (len(kept_files(whole, after)), len(kept_files(short, after))) == (12, 10)
    # All its days were there already, but none of its events: the day after goes without them.
    back = build(declared, 6, window=3)
    assert (len(kept_files(whole, back)), (back.path / "history_tails").exists()) == (6, False)
    day_of_log(77).with_columns(pl.col("time") - 70 * 86_400).write_parquet(tmp_path / "log/day-07.parquet")
    assert_equal(build(declared, 7, window=4), build(declared, 7, out="other", window=4))


@pytest.mark.parametrize(
    "over", [{}, {"counters": {"seen": {"of": "user", "value": "count"}}}], ids=["plain", "counters"]
)
def test_added_day_by_day_equals_built_at_once_in_several_buckets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, over: Any
) -> None:
    """Each day has a file a bucket; a later version has the buckets of the one whose days it keeps."""
    monkeypatch.setattr(build_module, "ROWS_A_SHARD", 150)
    write_days(tmp_path, range(10))
    declared = without_device(tmp_path, over)
    for number in (8, 9):
        last = build(declared, number)
    at_once = build(declared, 9, out="other")
    assert last.manifest.shards > 2 and len(last.manifest.parts) == 7 * last.manifest.shards
    assert_equal(last, at_once)
    if not over:
        return
    # What a server reads: what each user had seen when the log ended, whichever bucket counted it.
    snapshot = Encoder.load(last.path)
    assert snapshot.snapshot is not None
    users = pl.concat(day_of_log(number) for number in range(10))["user"].value_counts()
    counted = snapshot.snapshot.users["seen"][snapshot.users.encode(users["user"])]
    assert counted.tolist() == users["count"].to_list()


def test_a_broken_version_hides_no_older_one(tmp_path: Path) -> None:
    write_days(tmp_path, range(10))
    declared = without_device(tmp_path)
    whole, newest = build(declared, 8), build(declared, 8, window=5)
    (newest.path / MANIFEST).write_text("{}")
    after = build(declared, 9)
    assert len(kept_files(whole, after)) == 12


def test_rows_put_aside_teach_no_vocabulary(tmp_path: Path) -> None:
    """Item 500 occurs once, on the day that trains newly, and its copy is put aside: once is below `item_min_count`."""
    write_days(tmp_path, range(10))
    over = {"interactions": {"item_min_count": 2}, "checks": {"duplicate": "quarantine", "max_quarantine": 0.2}}
    file = tmp_path / "log/day-07.parquet"
    once = pl.read_parquet(file).tail(1).with_columns(item=pl.lit(500, pl.Int64))
    pl.concat([pl.read_parquet(file), once, once]).write_parquet(file)
    build(contract(tmp_path, over), 8)
    ids = Encoder.load(build(contract(tmp_path, over), 9).path).item["item"]
    assert ids.encode_one(500).tolist() == [1] and ids.encode_one(110)[0] > 1


def test_the_same_file_twice_is_another_log(tmp_path: Path) -> None:
    write_days(tmp_path, range(9))
    before = build(contract(tmp_path), 8)
    (tmp_path / "log/day-08b.parquet").write_bytes((tmp_path / "log/day-08.parquet").read_bytes())
    after = build(contract(tmp_path), 8)
    assert after.manifest.windows["test"].rows == 2 * before.manifest.windows["test"].rows


def test_values_of_a_day_built_again_are_learned(tmp_path: Path) -> None:
    write_days(tmp_path, range(10))
    build(contract(tmp_path), 9)
    file = tmp_path / "log/day-05.parquet"
    pl.read_parquet(file).with_columns(device=pl.lit("glasses")).write_parquet(file)
    device = Encoder.load(build(contract(tmp_path), 9).path).context["device"]
    assert device.raw_value(device.encode_one("glasses")[0]) == "glasses"


def test_a_row_is_let_in_by_the_item_table_of_today(tmp_path: Path) -> None:
    write_days(tmp_path, range(9))
    pl.read_parquet(tmp_path / "items.parquet").filter(pl.col("item") != 110).write_parquet(tmp_path / "items.parquet")
    declared = without_device(tmp_path, {"checks": {"unknown_item": "quarantine", "max_quarantine": 0.5}})
    before = build(declared, 8)
    write_days(tmp_path, range(9))
    after = build(declared, 8)
    assert after.manifest.windows["train"].rows > before.manifest.windows["train"].rows
    assert_equal(after, build(declared, 8, out="other"))


def test_a_sampling_rate_is_that_of_the_window(tmp_path: Path) -> None:
    """Uniform negatives are drawn from ever more items: rows before the window would raise the rate."""
    write_days(tmp_path, range(9))
    content = without_device(tmp_path).model_dump(exclude_unset=True)
    content["interactions"] |= {"label": None, "negatives": {"per_positive": 2, "exclude": "none"}}
    built = build(Contract.model_validate(content), 8, window=3)
    sampling = built.manifest.sampling
    assert sampling is not None and sampling.rate is not None
    drawn = sum(window.rows - window.positives for window in built.manifest.windows.values())
    positives = sum(window.positives for window in built.manifest.windows.values())
    assert (sampling.drawn, sampling.per_positive) == (drawn, drawn / positives)
    log = pl.concat(day_of_log(number) for number in range(9))
    taken = log.group_by("item").agg(pl.col("time").min())["time"].sort()
    in_window = log.filter(pl.col("time") >= (datetime(2026, 3, 7, tzinfo=UTC).timestamp()))["time"]
    assert sampling.rate == pytest.approx(drawn / taken.search_sorted(in_window, side="left").sum())


def test_a_window_whose_training_days_are_missing_is_refused_as_such(tmp_path: Path) -> None:
    """Before anything is fitted: counters have no mean label, and vectors no items."""
    write_days(tmp_path, range(9))
    for number in range(4, 7):
        (tmp_path / f"log/day-{number:02d}.parquet").unlink()
    with pytest.raises(DataError, match="the train window has no rows"):
        build(without_device(tmp_path, COUNTED), 8, window=5)


@pytest.mark.parametrize("window", [800_000, 10**12])
def test_a_window_that_begins_before_the_calendar_is_refused(tmp_path: Path, window: int) -> None:
    write_days(tmp_path, range(4))
    with pytest.raises(ConfigError, match=f"--window {window}d: begins before the year 1"):
        build(contract(tmp_path), 3, window=window)


def test_a_window_may_end_on_the_last_day_of_all(tmp_path: Path) -> None:
    write_days(tmp_path, range(2))
    with pytest.raises(DataError, match="the train window has no rows"):
        build_feature_set(contract(tmp_path), tmp_path / "out", as_of="9999-12-31", window=4)


def test_a_history_may_reach_back_before_the_calendar(tmp_path: Path) -> None:
    write_days(tmp_path, range(6))
    content = without_device(tmp_path).model_dump(exclude_unset=True)
    always = Contract.model_validate({**content, "history": {"max_len": 6}})
    within = Contract.model_validate({**content, "history": {"max_len": 6, "within": "9999999d"}})
    assert_equal(build(within, 5, window=4), build(always, 5, out="other", window=4))
