"""Windowed builds: a day is added without touching the others, and rows are those of a build at once."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest

from features.build import build as build_module
from features.build.build import build_feature_set
from features.build.history_tail import Events, HistoryTail, tails_suffice
from features.contract.contract import Contract
from features.contract.settings import merge, validate
from features.encoding.encoder import Encoder
from features.encoding.vocabulary import Vocabulary
from features.errors import ConfigError, DataError
from features.point_in_time import counter_pass
from features.store.feature_set import MANIFEST, FeatureSet
from tests.features.chunks import chunk_of
from tests.features.decoded import assert_same_rows, decoded

FIRST = date(2026, 3, 1)
CONTENT: dict[str, Any] = {
    "name": "daily",
    "interactions": {
        "path": "log/*.parquet",
        "user": "user",
        "item": "item",
        "time": "time",
        "label": "rating >= 4",
        "item_min_count": 1,
        "user_min_count": 1,
        "context": {"device": {"type": "categorical"}, "load": {"type": "numeric", "scale": "none"}},
    },
    "items": {"path": "items.parquet", "id": "item", "columns": {"genre": {"type": "categorical"}}},
    "history": {
        "max_len": 6,
        "columns": {"rating": {"type": "categorical"}, "pause": {"type": "gap"}},
    },
    "split": {"by": "days", "valid": 1, "test": 1},
}


def contract(folder: Path, over: Any = None) -> Contract:
    return validate(Contract, merge(CONTENT, over or {}) | {"root": str(folder)}, "daily.yaml")


def without_device(folder: Path, over: Any = None) -> Contract:
    """A device seen first on a later day is unknown in the parts of earlier days: two ways to build differ in it."""
    content = contract(folder, over).model_dump(exclude_unset=True)
    del content["interactions"]["context"]["device"]
    return Contract.model_validate(content)


def day_of_log(number: int, rows: int = 60) -> pl.DataFrame:
    """One day; later days bring new users, items and devices."""
    rng = np.random.default_rng(number)
    start = datetime(FIRST.year, FIRST.month, FIRST.day, tzinfo=UTC) + timedelta(days=number)
    return pl.DataFrame(
        {
            "user": rng.integers(0, 12 + number, rows),
            "item": rng.integers(100, 130 + 2 * number, rows),
            "time": int(start.timestamp()) + np.sort(rng.integers(0, 86_400, rows)) // 600 * 600,
            "rating": rng.integers(1, 6, rows),
            "device": rng.choice(["phone", "desk", f"watch{number // 3}"], rows),
            "load": rng.random(rows).round(3),
        }
    )


def write_days(folder: Path, days: range) -> None:
    (folder / "log").mkdir(parents=True, exist_ok=True)
    for number in days:
        day_of_log(number).write_parquet(folder / f"log/day-{number:02d}.parquet")
    items = np.arange(100, 130 + 2 * max(days))
    genres = [("drama", "noir", "jazz")[i % 3] for i in range(len(items))]
    pl.DataFrame({"item": items, "genre": genres}).write_parquet(folder / "items.parquet")


def build(declared: Contract, number: int, out: str = "out", window: int = 7) -> FeatureSet:
    as_of = (FIRST + timedelta(days=number)).isoformat()
    return build_feature_set(declared, Path(declared.root) / out, as_of=as_of, window=window).feature_set


def kept_files(before: FeatureSet, after: FeatureSet) -> set[str]:
    """Files of rows and events that are the earlier version's own."""
    data = {name for name in after.manifest.files if name.startswith(("rows/", "events/"))}
    old = {name for name in data if (before.path / name).is_file()}
    return {name for name in old if (before.path / name).stat().st_ino == (after.path / name).stat().st_ino}


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


def assert_equal(one: FeatureSet, other: FeatureSet) -> None:
    """By raw values: the numbering of categories and the scale of numbers depend on the way to build."""
    assert_same_rows(decoded(one), decoded(other))


COUNTED: dict[str, Any] = {
    "counters": {
        "item_rate": {"of": "item", "value": "rate", "prior": 3},
        "item_lately": {"of": "item", "value": "rate", "as_of": "hour", "half_life": "2d"},
        "user_count": {"of": "user", "value": "count", "as_of": "day"},
    },
    "history": {"columns": {"surprise": {"type": "residual", "counter": "item_rate"}}},
}


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


def test_values_of_a_day_built_again_are_learned(tmp_path: Path) -> None:
    write_days(tmp_path, range(10))
    build(contract(tmp_path), 9)
    file = tmp_path / "log/day-05.parquet"
    pl.read_parquet(file).with_columns(device=pl.lit("glasses")).write_parquet(file)
    device = Encoder.load(build(contract(tmp_path), 9).path).context["device"]
    assert device.raw_value(device.encode_one("glasses")[0]) == "glasses"


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
