"""Logs of other shapes: candidates in lists, positives alone, given histories, events of further tables."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from features.build.build import build_feature_set
from features.contract.contract import Contract
from features.contract.settings import validate
from features.errors import DataError
from features.store.feature_set import SPLITS, FeatureSet
from tests.features.decoded import decoded
from tests.features.raw import decoded_rows

DAY = 86_400


def contract(folder: Path, interactions: dict[str, Any], **more: Any) -> Contract:
    log = {"path": "log.parquet", "user": "user", "item": "item", "time": "time", "user_min_count": 1}
    content = {"name": "shape", "root": str(folder), "interactions": log | {"item_min_count": 1} | interactions}
    content["checks"] = {"earliest": "1970-01-01"}
    return validate(Contract, content | more, "shape.yaml")


def built(folder: Path, table: pl.DataFrame, interactions: dict[str, Any], **more: Any) -> FeatureSet:
    table.write_parquet(folder / "log.parquet")
    return build_feature_set(contract(folder, interactions, **more), folder / "out").feature_set


def rows_of(feature_set: FeatureSet) -> list[dict[str, Any]]:
    return sorted(decoded_rows(feature_set), key=lambda row: (row["time"], row["user"], str(row["item"])))


IMPRESSIONS = pl.DataFrame(
    {
        "impression": [1, 2, 3, 4],
        "user": ["a", "b", "a", "a"],
        "time": [10, 20, 30, 40],
        "text": ["N1-0 N-2-1", "N1-1", "N3-0 N1-1 ", "N3-1 N1-0"],
        "shown": [["N1", "N-2"], ["N1"], ["N3", "N1"], ["N3", "N1"]],
        "taken": [["N-2"], ["N1"], ["N1"], ["N3"]],
    }
)


@pytest.mark.parametrize(
    "candidates",
    [{"column": "text", "flag": "-"}, {"column": "shown", "clicked": "taken"}],
    ids=["text with flags", "lists"],
)
def test_candidates_become_rows(tmp_path: Path, candidates: dict[str, str]) -> None:
    found = built(
        tmp_path,
        IMPRESSIONS,
        {"candidates": candidates, "request": "impression"},
        history={"events": "clicked = 1"},
        split={"valid": 0.3, "test": 0.25},
    )
    rows = rows_of(found)
    assert [(row["user"], row["item"], row["label"]) for row in rows] == [
        ("a", "N-2", 1.0),
        ("a", "N1", 0.0),
        ("b", "N1", 1.0),
        ("a", "N1", 1.0),
        ("a", "N3", 0.0),
        ("a", "N1", 0.0),
        ("a", "N3", 1.0),
    ]
    # Only what was clicked is an event, and all candidates of an impression have one history.
    assert [row["history"] for row in rows] == [[], [], [], ["N-2"], ["N-2"], ["N-2", "N1"], ["N-2", "N1"]]
    requests = [part["request"].tolist() for split in SPLITS for part in found.rows(split)]
    assert sorted(len({*part}) for part in requests) == [1, 1, 2]


def test_a_candidate_without_a_flag_is_an_error(tmp_path: Path) -> None:
    broken = IMPRESSIONS.with_columns(text=pl.col("text").str.replace("N1-1", "N1"))
    with pytest.raises(DataError, match=r"log.parquet: candidates column 'text': 2 candidates do not end in -0 or -1"):
        built(tmp_path, broken, {"candidates": {"column": "text", "flag": "-"}})


def positives(rows: int = 400) -> pl.DataFrame:
    rng = np.random.default_rng(3)
    return pl.DataFrame(
        {
            "user": rng.integers(1, 41, rows),
            "item": rng.integers(100, 160, rows),
            "time": np.sort(rng.integers(0, 30 * DAY, rows)),
            "device": rng.choice(["phone", "desk"], rows),
        }
    )


@pytest.mark.parametrize("how", ["uniform", "popularity", "in_window"])
def test_positives_alone_get_negatives(tmp_path: Path, how: str, capsys: pytest.CaptureFixture[str]) -> None:
    table = positives()
    found = built(
        tmp_path,
        table,
        {
            "negatives": {"per_positive": 3, "how": how, "window": "3d", "seed": 5},
            "context": {"device": {"type": "categorical"}},
        },
    )
    rows = rows_of(found)
    taken = {(row["user"], row["item"], row["time"] // 1_000_000) for row in rows if row["label"] == 1}
    assert taken == set(table.select("user", "item", "time").iter_rows())
    first_taken = dict(table.group_by("item").agg(pl.col("time").min()).iter_rows())
    drawn = [row for row in rows if row["label"] == 0]
    assert 2.5 * len(taken) < len(drawn) <= 3 * len(taken)
    positive_at = {(row["user"], row["time"]): row for row in rows if row["label"] == 1}
    for row in drawn:
        second = row["time"] // 1_000_000
        assert first_taken[row["item"]] < second
        assert (row["user"], row["item"], second) not in taken
        # Context and history are the positive's own; a negative is never an event.
        positive = positive_at[row["user"], row["time"]]
        assert (row["device"], row["history"]) == (positive["device"], positive["history"])
    assert sum(len(part["item"]) for part in found.events("train")) == len(table)
    sampling = found.manifest.sampling
    assert sampling is not None and sampling.drawn == len(drawn)
    assert f"building rows and histories: {len(rows):,} / {len(rows):,} rows" in capsys.readouterr().err


def test_negatives_have_counters_and_are_not_counted(tmp_path: Path) -> None:
    table = positives()
    counters = {
        "item_count": {"of": "item", "value": "count"},
        "user_count": {"of": "user", "value": "count", "as_of": "day"},
    }
    found = built(tmp_path, table, {"negatives": {"per_positive": 3}}, counters=counters)
    drawn = 0
    for row in decoded(found):
        second = row["time"] // 1_000_000
        of_item, of_user = pl.col("item") == row["item"], pl.col("user") == row["user"]
        assert row["item_count"] == pytest.approx(table.filter(of_item, pl.col("time") < second).height, abs=1e-3)
        today = second // DAY * DAY
        assert row["user_count"] == pytest.approx(table.filter(of_user, pl.col("time") < today).height, abs=1e-3)
        drawn += row["label"] == 0
    assert drawn > 2 * len(table)


def test_later_positives_change_no_negative(tmp_path: Path) -> None:
    table = positives()
    spec = {"negatives": {"per_positive": 2}}
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = rows_of(built(tmp_path / "a", table, spec))
    early = rows_of(built(tmp_path / "b", table.head(250), spec))
    last = early[-1]["time"]

    def seen(rows: list[dict[str, Any]]) -> list[Any]:
        return [(row["user"], row["item"], row["time"], row["label"]) for row in rows if row["time"] <= last]

    assert seen(whole) == seen(early)


@pytest.mark.parametrize("dtype", [pl.Int64, pl.String])
def test_an_id_that_sorts_in_between_changes_no_negative(tmp_path: Path, dtype: type[pl.DataType]) -> None:
    """Tomorrow brings a user and an item before all others in sorted order: everybody's catalogue row moves."""
    ids = {name: (1000 + pl.col(name)).cast(dtype) for name in ("user", "item")}
    table = positives().with_columns(**ids)
    new = pl.DataFrame({"user": [1000], "item": [1000], "time": [30 * DAY], "device": ["desk"]})
    new = new.with_columns(pl.col("user", "item").cast(dtype))
    spec = {"negatives": {"per_positive": 2}}
    found = []
    for name, log in (("a", table), ("b", pl.concat([table, new]))):
        (tmp_path / name).mkdir()
        rows = rows_of(built(tmp_path / name, log, spec))
        found.append([(row["user"], row["item"], row["time"]) for row in rows if row["time"] < 30 * DAY * 1_000_000])
    assert found[0] == found[1]


def test_given_histories_are_taken_as_they_are(tmp_path: Path) -> None:
    table = pl.DataFrame(
        {
            "user": [1, 1, 1, 2, 2],
            "item": [11, 12, 13, 11, 14],
            "time": [1, 2, 3, 4, 5],
            "label": [1, 0, 1, 0, 1],
            "item_seq": [[0, 0, 11], [0, 0, 11], [0, 12, 99], [0, 0, 0], [11, 12, 13]],
        }
    )
    found = built(
        tmp_path,
        table,
        {"label": "label"},
        history={"max_len": 2, "given": {"column": "item_seq", "padding": 0}},
        split={"valid": 0.2, "test": 0.2},
    )
    rows = {(row["user"], row["item"]): row["history"] for row in rows_of(found)}
    # The newest two; 99 is in no row and still an item; the shared history of the first two rows lies there once.
    assert rows == {(1, 11): [11], (1, 12): [11], (1, 13): [12, 99], (2, 11): [], (2, 14): [12, 13]}
    assert [len(part["item"]) for part in found.events("train")] == [5]


def test_given_histories_may_be_text(tmp_path: Path) -> None:
    table = pl.DataFrame(
        {
            "user": ["u"] * 4,
            "item": ["N1", "N2", "N3", "N4"],
            "time": [1, 2, 3, 4],
            "label": [1, 0, 1, 0],
            "past": ["N9 N1", None, "", "N9 N1 N2"],
        }
    )
    given = {"column": "past", "separator": " "}
    found = built(tmp_path, table, {"label": "label"}, history={"given": given}, split={"valid": 0.25, "test": 0.25})
    assert [row["history"] for row in rows_of(found)] == [["N9", "N1"], [], [], ["N9", "N1", "N2"]]


def test_earlier_events_come_from_another_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = pl.DataFrame(
        {
            "user": [1, 1, 2, 2],
            "item": [5, 6, 5, 7],
            "time": [100, 200, 150, 250],
            "label": [1, 0, 0, 1],
            "dwell": [3, 4, 5, 6],
        }
    )
    # User 1 has one event before the log and one that the log has too; user 9 is in no row at all.
    pl.DataFrame(
        {"who": [1, 9, 2], "items": [[8, 5], [5], [7]], "times": [[50, 100], [1], [260]], "read": [[30, 31], [1], [2]]}
    ).write_parquet(tmp_path / "past.parquet")
    past = {"path": "past.parquet", "user": "who", "item": "items", "time": "times", "columns": {"dwell": "read"}}
    found = built(
        tmp_path,
        log,
        {"label": "label"},
        history={"tables": [past], "columns": {"dwell": {"type": "categorical"}}},
        split={"valid": 0.25, "test": 0.25},
    )
    rows = {(row["user"], row["item"]): row["history"] for row in rows_of(found)}
    assert rows == {(1, 5): [8], (1, 6): [8, 5], (2, 5): [], (2, 7): [5]}
    assert 9 not in {row["user"] for row in rows_of(found)}
    # Four rows and three events of users that the log knows, each counted once.
    assert "building rows and histories: 7 / 7 rows" in capsys.readouterr().err


def test_lists_of_unequal_length_are_an_error(tmp_path: Path) -> None:
    pl.DataFrame({"who": [1, 2], "items": [[8, 5], [5]], "times": [[50], [1]]}).write_parquet(tmp_path / "past.parquet")
    past = {"path": "past.parquet", "user": "who", "item": "items", "time": "times"}
    with pytest.raises(DataError, match=r"past.parquet: in 1 rows the lists 'items', 'times' are of unequal length"):
        built(tmp_path, positives(), {"label": "item > 120"}, history={"tables": [past]})


def test_days_are_counted_from_the_end(tmp_path: Path) -> None:
    start = int(datetime(2026, 3, 1, tzinfo=UTC).timestamp())
    table = positives().with_columns(pl.col("time") + start)
    found = built(tmp_path, table, {"label": "item > 120"}, split={"by": "days", "valid": 2, "test": 3})
    days = {
        name: {row["time"] // 1_000_000 // DAY - start // DAY for row in decoded_rows(found) if row["split"] == name}
        for name in SPLITS
    }
    assert days["test"] == {27, 28, 29} and days["valid"] == {25, 26} and max(days["train"]) == 24


def test_files_of_their_own_validate_and_test(tmp_path: Path) -> None:
    table = positives(60).with_columns(label=(pl.col("item") > 130).cast(pl.Int8)).drop("time")
    table = table.with_columns(past=pl.lit([101, 102]))
    table[:40].write_parquet(tmp_path / "log.parquet")
    table[40:50].write_parquet(tmp_path / "valid.parquet")
    table[50:].drop("label").write_parquet(tmp_path / "test.parquet")
    by_files = contract(
        tmp_path,
        {"time": None, "label": "label"},
        history={"given": {"column": "past"}},
        split={"by": "files", "valid": "valid.parquet", "test": "test.parquet"},
    )
    found = build_feature_set(by_files, tmp_path / "out").feature_set
    windows = found.manifest.windows
    assert {name: (window.rows, window.labelled) for name, window in windows.items()} == {
        "train": (40, True),
        "valid": (10, True),
        "test": (10, False),
    }
    assert np.isnan(found.rows("test")[0]["label"]).all()


def test_sessions_and_repeats(tmp_path: Path) -> None:
    minute = 60
    table = pl.DataFrame(
        {
            "user": [1] * 6,
            "item": [5, 5, 6, 5, 7, 8],
            "time": [0, 1 * minute, 2 * minute, 50 * minute, 51 * minute, 99 * minute],
        }
    ).with_columns(label=pl.col("item") % 2)
    history = {"session_gap": "30m", "repeats": "consecutive"}
    found = built(tmp_path, table, {"label": "label"}, history=history, split={"valid": 0.2, "test": 0.2})
    assert [row["history"] for row in rows_of(found)] == [[], [5], [5], [], [5], []]


def test_events_become_known_after_the_delay(tmp_path: Path) -> None:
    table = pl.DataFrame({"user": [1] * 5, "item": [5, 6, 7, 8, 9], "time": [0, 60, 300, 301, 3_600]})
    table = table.with_columns(label=pl.col("item") % 2)
    pl.DataFrame({"user": [1, 1], "item": [3, 4], "time": [-60, 0]}).write_parquet(tmp_path / "past.parquet")
    past = {"path": "past.parquet", "user": "user", "item": "item", "time": "time"}
    history = {"delay": "5m", "max_len": 3, "tables": [past]}
    found = built(tmp_path, table, {"label": "label"}, history=history, split={"valid": 0.2, "test": 0.2},
                  checks={"earliest": "1969-12-31"})  # fmt: skip
    # At 300 only what was before 0; at 301 before 1, so the event of 0 and that of the table too; at 3,600 the newest.
    assert [row["history"] for row in rows_of(found)] == [[], [], [3], [3, 5, 4], [6, 7, 8]]


def test_further_labels_stay_with_their_rows(tmp_path: Path) -> None:
    table = positives().with_columns(like=(pl.col("item") % 3 == 0))
    found = built(tmp_path, table, {"label": "item > 120", "labels": {"like": "like", "long": "item > 150"}})
    for split in SPLITS:
        for part in found.rows(split):
            items = found_items(found, part["item"])
            assert part["label.like"].tolist() == [float(item % 3 == 0) for item in items]
            assert part["label.long"].tolist() == [float(item > 150) for item in items]


def test_a_label_may_be_unknown_but_not_anything(tmp_path: Path) -> None:
    table = positives().with_columns(like=pl.when(pl.col("item") > 103).then((pl.col("item") % 2).cast(pl.Int8)))
    found = built(tmp_path, table, {"label": "item > 120", "labels": {"like": "like"}})
    assert found.schema.labels == ("like",)
    for part in found.rows("train"):
        items = np.array(found_items(found, part["item"]))
        assert np.array_equal(np.isnan(part["label.like"]), items <= 103)
    with pytest.raises(
        DataError, match=r"interactions\.labels\.stars 'item': .* are neither 0 nor 1 nor null, e\.g\. "
    ):
        built(tmp_path, table, {"label": "item > 120", "labels": {"stars": "item"}})


def test_a_label_may_be_unknown_in_every_row(tmp_path: Path) -> None:
    """A parquet of nulls alone does not know their type."""
    found = built(
        tmp_path, positives().with_columns(like=pl.lit(None)), {"label": "item > 120", "labels": {"like": "like"}}
    )
    assert all(np.isnan(part["label.like"]).all() for part in found.rows("train"))
    assert "column 'like': all 400 rows are null. It says nothing; leave it out." in found.manifest.findings


def test_a_label_that_no_row_has_is_told_as_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="column 'like': 400 of 400 rows are null"):
        built(tmp_path, positives().with_columns(like=pl.lit(None)), {"label": "like"})


def test_a_drawn_negative_is_negative_in_every_label(tmp_path: Path) -> None:
    log = {"label": None, "labels": {"like": "item > 0"}, "negatives": {"per_positive": 2}}
    found = built(tmp_path, positives(), log)
    label = np.concatenate([part["label"] for part in found.rows("train")])
    like = np.concatenate([part["label.like"] for part in found.rows("train")])
    assert 0 < label.mean() < 1 and np.array_equal(label, like)


def found_items(found: FeatureSet, rows: np.ndarray) -> list[int]:
    from features.encoding.encoder import Encoder

    items = Encoder.load(found.path).items
    return [items.value(row) for row in rows]


PASTS = pl.DataFrame(
    {
        "user": [1] * 4,
        "item": [11, 12, 13, 14],
        "time": [1, 2, 3, 4],
        "label": [1, 0, 1, 0],
        "past": ["0 0 9", None, "0 9 11", "11 12"],
    }
)


def test_given_text_names_the_whole_numbers_that_the_log_has(tmp_path: Path) -> None:
    """A csv has no other way to write them."""
    PASTS.write_csv(tmp_path / "log.csv")
    declared = contract(
        tmp_path,
        {"path": "log.csv", "label": "label"},
        history={"given": {"column": "past", "separator": " ", "padding": 0}},
        split={"valid": 0.25, "test": 0.25},
        name="shape",
    )
    found = build_feature_set(declared, tmp_path / "out").feature_set
    assert [row["history"] for row in rows_of(found)] == [[9], [], [9, 11], [11, 12]]


@pytest.mark.parametrize(
    ("past", "given", "words"),
    [
        (["9", "x9 1.0", "7", "x9"], {"separator": " "}, r"column 'past': 3 ids, e\.g\. 'x9', are no whole numbers"),
        ([["9"], ["8"], [], None], {}, r"column 'past' holds ids of type String, e\.g\. '8', those of .*log\.parquet"),
        ([[9.5], [8.0], [], None], {}, r"log\.parquet: column 'past': 1 values, e\.g\. 9\.5, are not whole numbers"),
        (["0 9"] * 4, {"separator": " ", "padding": "0"}, r"given\.padding '0' is text, the ids of 'past' are num"),
        ([["0", "9"]] * 4, {"padding": 0}, r"given\.padding 0 is a number, the ids of 'past' are text"),
    ],
)
def test_given_histories_of_other_ids_than_the_logs_are_refused(
    tmp_path: Path, past: list[Any], given: dict[str, Any], words: str
) -> None:
    table = PASTS.with_columns(past=pl.Series(past))
    with pytest.raises(DataError, match=words):
        built(
            tmp_path,
            table,
            {"label": "label"},
            history={"given": {"column": "past"} | given},
            split={"valid": 0.25, "test": 0.25},
        )


@pytest.mark.parametrize("dtype", [pl.Int32, pl.UInt64, pl.Float64])
def test_clicks_may_be_numbers_of_another_width_than_the_candidates(tmp_path: Path, dtype: type[pl.DataType]) -> None:
    numbered = IMPRESSIONS.with_columns(
        shown=pl.Series([[1, 2], [1], [3, 1], [3, 1]]), taken=pl.Series([[2], [1], [1], [3]], dtype=pl.List(dtype))
    )
    shown = {"candidates": {"column": "shown", "clicked": "taken"}}
    found = built(tmp_path, numbered, shown, split={"valid": 0.3, "test": 0.25})
    assert sorted((row["item"], row["label"]) for row in rows_of(found)) == [
        (1, 0.0), (1, 0.0), (1, 1.0), (1, 1.0), (2, 1.0), (3, 0.0), (3, 1.0)
    ]  # fmt: skip


def test_clicks_of_another_kind_than_the_candidates_are_refused(tmp_path: Path) -> None:
    broken = IMPRESSIONS.with_columns(taken=pl.Series([[2], [1], [1], [3]]))
    words = r"log\.parquet: candidates column 'taken' holds Int64, 'shown' holds String\. Write both with one type"
    with pytest.raises(DataError, match=words):
        built(tmp_path, broken, {"candidates": {"column": "shown", "clicked": "taken"}})


@pytest.mark.parametrize(
    ("past", "histories"),
    [([None] * 4, [[], [], [], []]), ([[9, None], [None], None, [None, 11]], [[9], [], [], [11]])],
    ids=["a column of nulls", "nulls in lists"],
)
def test_a_missing_id_is_no_event_of_a_given_history(tmp_path: Path, past: list[Any], histories: list[Any]) -> None:
    table = PASTS.with_columns(past=pl.Series(past))
    given = {"given": {"column": "past"}}
    found = built(tmp_path, table, {"label": "label"}, history=given, split={"valid": 0.25, "test": 0.25})
    assert [row["history"] for row in rows_of(found)] == histories
