"""Tables with `valid_from`: a row reads what was known at its own time, and no encoder learns from later."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.build.build import build_feature_set
from features.contract.contract import Contract, Table
from features.contract.settings import validate
from features.encoding.encoder import Encoder
from features.errors import ConfigError, DataError
from features.fitting.table_versions import versions_of, visible
from features.monitor.profile.file import PROFILE, load_profile
from features.store.feature_set import FeatureSet
from features.store.versions import ROW, VALID_FROM, Versions, columns_as_of, instants_of
from tests.features.raw import ROWS, START, Tables, decoded_rows, in_order, raw_log

MINUTE = 60
NEW = 7  # an id below all others that comes late
LAST = START + (ROWS // 3 - 1) * MINUTE
CHANGE = START + 10 * MINUTE  # within the training window of 28 minutes
SECOND = 1_000_000
LOG = {"path": "log.csv", "user": "u", "item": "i", "time": "t", "label": "clicked"}
VERSIONED: dict[str, Any] = {"items": {"valid_from": "since"}, "users": {"valid_from": "since"}}


def changing(tables: Tables) -> None:
    """Every row has held for ever; item 101 becomes a thriller of price 50, and user 1 of segment s9, at `CHANGE`."""
    for name, key, one, change in (
        ("items", "item_id", 101, {"genre": "thriller", "price": 50.0}),
        ("users", "user_id", 1, {"segment": "s9"}),
    ):
        before = tables[name].with_columns(since=pl.lit(0, pl.Int64))
        after = before.filter(pl.col(key) == one).with_columns(
            since=pl.lit(CHANGE, pl.Int64), **{name: pl.lit(value) for name, value in change.items()}
        )
        tables[name] = pl.concat([after, before])


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> FeatureSet:
    folder = tmp_path_factory.mktemp("versions")
    return build_feature_set(raw_log(folder / "raw", changing, VERSIONED), folder / "out").feature_set


def item_at(built: FeatureSet, item: int, second: float) -> dict[str, Any]:
    """Raw values of an item as a row of this time reads them."""
    encoder = Encoder.load(built.path)
    rows, time = np.array([encoder.items.index(item)]), np.array([int(second * SECOND)])
    found = columns_as_of(built.items, built.item_versions, rows, time)
    return {name: one.raw_value(found[name][0]) for name, one in encoder.item.items() if name != "tags"}


@pytest.mark.parametrize(
    ("second", "genre", "price"),
    [(CHANGE - 1e-6, "drama", 0.0), (CHANGE, "thriller", 50.0), (CHANGE + 1, "thriller", 50.0)],
)
def test_a_row_reads_the_version_that_has_begun(built, second, genre, price):
    found = item_at(built, 101, second)
    assert (found["genre"], found["price"]) == (genre, pytest.approx(price, abs=1e-4))


def test_the_id_is_that_of_the_item_in_every_version(built):
    assert item_at(built, 101, CHANGE - 1)["item_id"] == item_at(built, 101, CHANGE)["item_id"] == 101


def test_an_item_without_a_change_reads_its_one_row(built):
    assert item_at(built, 102, START)["genre"] == item_at(built, 102, LAST)["genre"] == "comedy"


def test_users_change_likewise(built):
    encoder = Encoder.load(built.path)
    row = np.array([encoder.users.index(1)] * 2)
    found = columns_as_of(built.users, built.user_versions, row, np.array([CHANGE - 1, CHANGE]) * SECOND)
    assert [encoder.user["segment"].raw_value(one) for one in found["segment"]] == ["s0", "s9"]


def test_the_table_beside_holds_the_latest_version(built):
    encoder = Encoder.load(built.path)
    assert encoder.item["genre"].raw_value(built.items["genre"][encoder.items.index(101)]) == "thriller"
    assert encoder.user["segment"].raw_value(encoder.user_table["segment"][encoder.users.index(1)]) == "s9"


def test_an_item_is_unknown_before_its_first_version_begins(tmp_path):
    def late(tables: Tables) -> None:
        since = pl.when(pl.col("item_id") == 101).then(CHANGE).otherwise(0)
        tables["items"] = tables["items"].with_columns(since=since)

    contract = raw_log(tmp_path / "raw", late, {"items": {"valid_from": "since"}})
    built = build_feature_set(contract, tmp_path / "out").feature_set
    encoder = Encoder.load(built.path)
    row = np.array([encoder.items.index(101)])
    found = columns_as_of(built.items, built.item_versions, row, np.array([CHANGE * SECOND - 1]))
    assert (found["genre"].tolist(), found["tags"].tolist()) == ([1], [[1, 0]])
    assert np.isnan(found["price"]).all()
    assert found["item_id"] == built.items["item_id"][row] > 1


def test_rows_of_one_request_read_what_its_first_row_read(tmp_path):
    """Rows 29 and 30, a minute apart, are one request: at `CHANGE` the second still reads the old price of 101."""

    def one_request(tables: Tables) -> None:
        changing(tables)
        place = pl.int_range(pl.len())
        both = place.is_in([29, 30])
        tables["log"] = tables["log"].with_columns(
            user_id=pl.when(both).then(3).otherwise("user_id"),
            item_id=pl.when(both).then(101).otherwise("item_id"),
            request=pl.when(both).then(29).otherwise(place),
        )

    over = VERSIONED | {"interactions": {"request": "request"}}
    built = build_feature_set(raw_log(tmp_path / "raw", one_request, over), tmp_path / "out").feature_set
    encoder, seen = Encoder.load(built.path), {}
    for rows in built.rows("train"):
        genre = built.items_as_of(rows["item"], instants_of(rows))["genre"]
        seen |= {
            (int(request), int(time) // SECOND): encoder.item["genre"].raw_value(one)
            for request, time, item, one in zip(rows["request"], rows["time"], rows["item"], genre, strict=True)
            if encoder.items.value(item) == 101
        }
    after = {key: value for key, value in seen.items() if key[1] >= CHANGE and key[0] != 29}
    assert (seen[29, CHANGE - MINUTE], seen[29, CHANGE]) == ("drama", "drama")
    assert set(after.values()) == {"thriller"}


def test_versions_are_found_for_any_shape_of_rows():
    latest = {"a": np.arange(10, 16)}
    versions = Versions(
        latest,
        {
            ROW: np.array([2, 2, 2, 4], np.int32),
            VALID_FROM: np.array([5, 7, 9, 7], np.int64),
            "a": np.array([20, 21, 12, 14]),
        },
    )
    rows = np.array([[0, 1, 2, 3, 4, 5]] * 4, np.int32)
    found = versions.find(rows, np.array([[4], [5], [8], [9]]))
    # Stacked rows: 6, 7, 8 are the versions of 2, and 9 that of 4; 1 is the unknown row.
    assert found.tolist() == [[0, 1, 1, 3, 1, 5], [0, 1, 6, 3, 1, 5], [0, 1, 7, 3, 9, 5], [0, 1, 8, 3, 9, 5]]
    assert versions.stacked["a"].tolist() == [10, 11, 12, 13, 14, 15, 20, 21, 12, 14]


def test_a_feature_set_of_one_row_an_id_has_no_versions(tmp_path):
    built = build_feature_set(raw_log(tmp_path / "raw"), tmp_path / "out").feature_set
    assert built.item_versions is None and built.user_versions is None
    assert not list(built.path.glob("*_versions.arrow"))


def test_rows_that_say_the_same_are_one_version(tmp_path):
    def daily(tables: Tables) -> None:
        days = [tables["items"].with_columns(since=pl.lit(START + day, pl.Int64)) for day in (0, 1, 2)]
        days[2] = days[2].with_columns(price=pl.when(pl.col("item_id") == 103).then(9.0).otherwise("price"))
        tables["items"] = pl.concat(days)

    contract = raw_log(tmp_path / "raw", daily, {"items": {"valid_from": "since"}})
    built = build_feature_set(contract, tmp_path / "out").feature_set
    assert built.item_versions is not None
    changed = Encoder.load(built.path).items.index(103)
    assert (built.item_versions.row_V == changed).sum() == 2
    assert len(built.item_versions.row_V) == 12 + 1


def with_future(tables: Tables) -> None:
    """As `changing`; and every item and user becomes something unheard of when training is over."""
    changing(tables)
    for name, key, columns in (
        ("items", "item_id", {"genre": pl.lit("later"), "price": pl.lit(1e6), "tags": pl.lit(["z"])}),
        ("users", "user_id", {"segment": pl.lit("later")}),
    ):
        later = tables[name].unique(key).with_columns(since=pl.lit(LAST - 1, pl.Int64), **columns)
        tables[name] = pl.concat([tables[name], later])


def test_a_version_that_begins_after_training_teaches_no_encoder(built, tmp_path):
    other = build_feature_set(raw_log(tmp_path / "raw", with_future, VERSIONED), tmp_path / "out").feature_set
    for section in ("item", "user"):
        mine, theirs = (getattr(Encoder.load(one.path), section) for one in (built, other))
        for name in mine:
            assert mine[name].to_json(lambda words: words.values.to_list()) == theirs[name].to_json(
                lambda words: words.values.to_list()
            )
    assert item_at(other, 102, START)["genre"] == "comedy"
    assert item_at(other, 102, LAST)["genre"] is None  # a value that training never saw


def test_a_version_replaced_before_training_teaches_no_encoder(tmp_path):
    def old(tables: Tables) -> None:
        long_ago = tables["items"].with_columns(since=pl.lit(START - 9, pl.Int64), genre=pl.lit("silent"))
        tables["items"] = pl.concat([long_ago, tables["items"].with_columns(since=pl.lit(START, pl.Int64))])

    contract = raw_log(tmp_path / "raw", old, {"items": {"valid_from": "since"}})
    built = build_feature_set(contract, tmp_path / "out").feature_set
    assert "silent" not in Encoder.load(built.path).item["genre"].vocabulary.values.to_list()  # type: ignore[attr-defined]


def test_visible_versions_hold_at_some_instant_from_first_to_last():
    starts = {1: [1, 4, 9], 2: [9, 10]}
    table = pl.DataFrame([(i, time) for i, times in starts.items() for time in times], ["id", VALID_FROM], orient="row")
    # From 4 to 9: the first version of 1 was replaced at 4 itself, and the second of 2 comes too late.
    assert visible(table, "id", 4, 9).rows() == [(1, 4), (1, 9), (2, 9)]


def test_the_first_version_of_an_id_stays_though_the_id_before_ended_with_the_same():
    table = Table(path="t.csv", id="id", valid_from="t", columns={"a": {"type": "numeric"}})
    content = pl.DataFrame({"id": [2, 1, 1, 2], VALID_FROM: [5, 9, 1, 6], "a": [7, 7, 3, 7]})
    found = versions_of(content, "t.csv", table, "item", None)
    assert found.rows() == [(1, 1, 3), (1, 9, 7), (2, 5, 7)]


def test_as_of_leaves_out_versions_that_begin_after_the_day(tmp_path):
    day = 86_400
    midnight = START // day * day + day

    def later(tables: Tables) -> None:
        before = tables["items"].with_columns(since=pl.lit(0, pl.Int64))
        at = [(midnight - 1, "last of the day"), (midnight, "first of the next")]
        after = [before.with_columns(since=pl.lit(start, pl.Int64), genre=pl.lit(genre)) for start, genre in at]
        tables["items"] = pl.concat([before, *after])

    contract = raw_log(tmp_path / "raw", later, {"items": {"valid_from": "since"}})
    as_of = datetime.fromtimestamp(START, UTC).date().isoformat()
    built = build_feature_set(contract, tmp_path / "out", as_of=as_of).feature_set
    assert built.item_versions is not None
    assert set(built.item_versions.valid_from_V.tolist()) == {0, (midnight - 1) * SECOND}


def spread_over_days(tables: Tables) -> None:
    """Four instants a day for ten days; 101 changes on the fifth, 102 first appears on the seventh, `NEW` late."""
    changing(tables)
    hours = 6 * 60 * MINUTE
    log = tables["log"].with_columns(time=START + (pl.col("time") - START) // MINUTE * hours)
    tables["log"] = log.with_columns(
        item_id=pl.when(pl.col("time") >= START + 33 * hours).then(NEW).otherwise("item_id")
    )
    since = pl.when(pl.col("since") == CHANGE).then(START + 16 * hours).otherwise("since")
    tables["users"] = tables["users"].with_columns(since=since)
    late = pl.when(pl.col("item_id") == 102).then(START + 26 * hours).otherwise(since)
    items = tables["items"].with_columns(since=late)
    new = items.filter(pl.col("item_id") == 103).with_columns(item_id=pl.lit(NEW, pl.Int64))
    starts = zip((33, 35), ("comedy", "noir"), strict=True)
    versions = [new.with_columns(since=pl.lit(START + n * hours, pl.Int64), genre=pl.lit(genre)) for n, genre in starts]
    tables["items"] = pl.concat([items, *versions])


def test_days_added_one_by_one_read_the_versions_that_a_build_at_once_reads(tmp_path):
    over = VERSIONED | {"split": {"by": "days", "valid": 1, "test": 1}}
    contract = raw_log(tmp_path / "raw", spread_over_days, over)
    first = datetime.fromtimestamp(START, UTC).date()
    days = [(first + timedelta(days=n)).isoformat() for n in (7, 8, 9)]
    for day in days:
        step = build_feature_set(contract, tmp_path / "out", as_of=day, window=7).feature_set
    whole = build_feature_set(contract, tmp_path / "other", as_of=days[-1], window=7).feature_set
    assert in_order(read_as_of(step)) == in_order(read_as_of(whole))
    genres = {item: {row["genre"] for row in read_as_of(whole) if row["item"] == item} for item in (101, NEW)}
    assert genres == {101: {"drama", "thriller"}, NEW: {"comedy", "noir"}}
    # Its id is the first of all, and came after the catalogue of the days before: its versions follow its row.
    assert Encoder.load(step.path).items.index(NEW) > Encoder.load(step.path).items.index(112)


def read_as_of(built: FeatureSet) -> list[dict[str, Any]]:
    """Every row by raw values with the item's genre as of its time."""
    return [
        {name: row[name] for name in ("split", "user", "item", "time", "history")}
        | {"genre": item_at(built, row["item"], row["time"] / SECOND)["genre"]}
        for row in decoded_rows(built)
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            pl.when(pl.col("item_id") == 104).then(None).otherwise("since"),
            "1 of 13 rows are null (or do not parse in items.time_format), e.g. of item 104",
        ),
        (pl.col("since") * 0, "2 of 13 rows share item and instant with another, e.g. item 101 at 1970-01-01 00:00:00"),
        (pl.col("since") * 1000, "read in 's' ends at a time beyond the years 1 to 9999"),
        (
            pl.col("since").cast(pl.String),
            "holds String, expected timestamps, dates, whole numbers in items.time_unit, or text",
        ),
    ],
    ids=["null", "twice", "unit", "text"],
)
def test_what_is_no_version_is_refused(tmp_path, change, words):
    def broken(tables: Tables) -> None:
        changing(tables)
        tables["items"] = tables["items"].with_columns(since=change)

    contract = raw_log(tmp_path / "raw", broken, VERSIONED)
    with pytest.raises(DataError, match=re.escape(words)) as error:
        build_feature_set(contract, tmp_path / "out")
    assert "items.parquet" in str(error.value) and "items.valid_from" in str(error.value)


def test_seconds_read_as_milliseconds_are_refused(tmp_path):
    contract = raw_log(tmp_path / "raw", changing, {"items": {"valid_from": "since", "time_unit": "ms"}})
    with pytest.raises(DataError, match=r"ends at 1970-01-20 .*outside 1990-01-01 .*Correct items.time_unit"):
        build_feature_set(contract, tmp_path / "out")


def test_two_rows_of_one_id_without_valid_from_name_it_as_the_way_out(tmp_path):
    contract = raw_log(tmp_path / "raw", changing)
    with pytest.raises(DataError, match=r"1 ids appear more than once in 13 rows, e.g. 101.*items.valid_from"):
        build_feature_set(contract, tmp_path / "out")


def test_dates_and_timestamps_begin_at_their_instant(tmp_path):
    def dated(tables: Tables) -> None:
        changing(tables)
        day = pl.lit(datetime.fromtimestamp(CHANGE, UTC)).dt.replace_time_zone(None)
        tables["items"] = tables["items"].with_columns(
            since=pl.when(pl.col("since") == CHANGE).then(day).otherwise(datetime(1900, 1, 1))
        )

    contract = raw_log(tmp_path / "raw", dated, VERSIONED)
    built = build_feature_set(contract, tmp_path / "out").feature_set
    assert [item_at(built, 101, time)["genre"] for time in (CHANGE - 1, CHANGE)] == ["drama", "thriller"]


def test_text_begins_at_the_instant_that_its_format_reads(tmp_path):
    def written(tables: Tables) -> None:
        changing(tables)
        texts = {0: "01/01/1900 00:00", CHANGE: datetime.fromtimestamp(CHANGE, UTC).strftime("%d/%m/%Y %H:%M")}
        tables["items"] = tables["items"].with_columns(pl.col("since").replace_strict(texts))

    over = VERSIONED | {"items": {"valid_from": "since", "time_format": "%d/%m/%Y %H:%M"}}
    built = build_feature_set(raw_log(tmp_path / "raw", written, over), tmp_path / "out").feature_set
    minute = CHANGE // MINUTE * MINUTE
    assert [item_at(built, 101, time)["genre"] for time in (minute - 1, minute)] == ["drama", "thriller"]


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"items": {"path": "i.csv", "id": "i", "valid_from": "t"}}, "declares no columns that could change"),
        (
            {
                "interactions": LOG | {"time": None},
                "users": {"path": "u.csv", "id": "u", "valid_from": "t", "columns": {"age": {"type": "numeric"}}},
                "history": {"given": {"column": "past"}},
                "split": {"by": "files", "valid": "valid.csv", "test": "test.csv"},
            },
            "users.valid_from: a log without interactions.time",
        ),
    ],
    ids=["no columns", "no time"],
)
def test_a_contract_in_which_versions_mean_nothing_is_refused(sections, words):
    with pytest.raises(ConfigError, match=words):
        validate(Contract, {"name": "c", "interactions": LOG} | sections, "c.yaml")


def test_a_changed_table_makes_another_version_and_keeps_the_days(tmp_path):
    over = VERSIONED | {"split": {"by": "days", "valid": 1, "test": 1}}
    day = datetime.fromtimestamp(START + 9 * 24 * 60 * MINUTE, UTC).date().isoformat()
    before = build_feature_set(raw_log(tmp_path / "raw", spread_over_days, over), tmp_path / "out", day, 7).feature_set

    def one_more(tables: Tables) -> None:
        spread_over_days(tables)
        more = (
            tables["items"]
            .filter(pl.col("item_id") == 103)
            .with_columns(since=pl.lit(START + 3 * 24 * 60 * MINUTE, pl.Int64), genre=pl.lit("drama"))
        )
        tables["items"] = pl.concat([tables["items"], more])

    after = build_feature_set(raw_log(tmp_path / "raw", one_more, over), tmp_path / "out", day, 7).feature_set
    assert before.manifest.version != after.manifest.version
    files = [name for name in before.manifest.files if name.startswith(("rows/", "events/"))]
    assert files and all(before.manifest.files[name] == after.manifest.files[name] for name in files)


def test_the_profile_counts_what_each_row_read(built):
    profile = load_profile(built.path / PROFILE)
    rows = [row for row in read_as_of(built) if row["split"] == "train"]
    of_101 = [row["genre"] for row in rows if row["item"] == 101]
    assert 0 < of_101.count("thriller") < len(of_101)
    share = sum(row["genre"] == "thriller" for row in rows) / len(rows)
    assert profile.splits["train"].columns["item.genre"].top["thriller"] == pytest.approx(share, abs=1e-4)


def test_the_profile_counts_rows_before_the_first_version_as_missing(tmp_path):
    def late(tables: Tables) -> None:
        since = pl.when(pl.col("item_id") == 102).then(CHANGE).otherwise(0)
        tables["items"] = tables["items"].with_columns(since=since)

    contract = raw_log(tmp_path / "raw", late, {"items": {"valid_from": "since"}})
    built = build_feature_set(contract, tmp_path / "out").feature_set
    rows = [row for row in decoded_rows(built) if row["split"] == "train" and row["item"] == 102]
    early = sum(row["time"] < CHANGE * SECOND for row in rows)
    assert 0 < early < len(rows)
    assert load_profile(built.path / PROFILE).splits["train"].columns["item.genre"].missing == early


@given(
    st.lists(st.tuples(st.integers(2, 6), st.integers(0, 12)), unique=True, max_size=30),
    st.lists(st.tuples(st.integers(0, 7), st.integers(-1, 14)), min_size=1, max_size=20),
)
def test_find_equals_a_plain_search(versions, asked):
    versions = sorted(versions)
    row = np.array([row for row, _ in versions], np.int32)
    table = {ROW: row, VALID_FROM: np.array([time for _, time in versions], np.int64), "a": np.arange(len(row))}
    known = Versions({"a": np.zeros(8, np.int64)}, table)
    wanted = []
    for item, time in asked:
        mine = [place for place, (row_, _) in enumerate(versions) if row_ == item]
        begun = [place for place in mine if versions[place][1] <= time]
        wanted.append(8 + begun[-1] if begun else 1 if mine else item)
    rows, times = np.array(asked).T
    assert known.find(rows, times).tolist() == wanted


@pytest.mark.parametrize("aware", ["log", "items"])
def test_versions_and_rows_with_and_without_a_zone_are_refused(tmp_path, aware):
    """Those without would be read as UTC: hours off where they are local."""

    def timed(tables: Tables) -> None:
        changing(tables)
        for name, column in (("log", "time"), ("items", "since")):
            moment = pl.from_epoch(column, "s").dt.replace_time_zone("UTC" if name == aware else None)
            tables[name] = tables[name].with_columns(moment.alias(column))

    contract = raw_log(tmp_path / "raw", timed, VERSIONED)
    with pytest.raises(DataError, match=r"has no time zone, that of .*has one\. Write both in UTC, with the zone"):
        build_feature_set(contract, tmp_path / "out")
