"""A served log and its outcomes: which rows it becomes, with which labels, and what does not count."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.build.build import build_feature_set
from features.checks.served_log import refuse_served_ids, served_findings
from features.contract.contract import Contract
from features.errors import ConfigError, DataError
from features.sources.log import open_log
from features.sources.served import Outcomes, outcomes_of
from features.store.served_schema import SERVED

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def at(minutes: float) -> datetime:
    return NOON + timedelta(minutes=minutes)


def served(request: str, minute: float, items: list[str], positions: list[int | None], **more: Any) -> dict[str, Any]:
    row = dict.fromkeys(SERVED.names) | {"request": request, "time": at(minute), "logged": at(minute)}
    row |= {"version": "v1", "user": "7", "user_hashed": False, "user_columns": "{}", "context": "{}", "inputs": []}
    return row | {"candidates": items, "positions": positions, "scores": [0.5] * len(items)} | more


# The newest answer is of minute 100: with a wait of 30 minutes, what was served after minute 70 is not decided.
LOG = [
    served("a", 0, ["1", "2", "3"], [2, 0, 1], context='{"device": "tv", "load": 2}'),
    served("b", 10, ["2", "9"], [0, None], context='{"load": 1.5}', user="8"),
    served("c", 70, ["1", "3"], [0, 1]),
    served("d", 70.1, ["1", "3"], [0, 1]),
    served("e", 100, ["1"], [0]),
]
OUTCOMES = [
    ("a", 2, at(30)),  # the last instant that counts
    ("a", 2, at(1)),  # once more
    ("a", 1, at(30.01)),  # late
    ("b", 2, at(9)),  # before the answer
    ("b", 9, at(11)),  # not shown
    ("c", 3, at(70)),  # at once
    ("e", 1, at(101)),  # not decided
    ("zz", 1, at(1)),  # unknown
]


def written(folder: Path, log: list[dict[str, Any]] | None = None, **declared: Any) -> Contract:
    pq.write_table(pa.Table.from_pylist(log or LOG, SERVED), folder / "served-1.parquet")
    pl.DataFrame(OUTCOMES, schema=["request", "item", "time"], orient="row").write_parquet(folder / "clicks.parquet")
    pl.DataFrame({"id": [1, 2, 3]}).write_parquet(folder / "items.parquet")
    pl.DataFrame({"id": [7, 8]}).write_parquet(folder / "users.parquet")
    log_declared = {
        "path": "served-*.parquet",
        "served": {"outcomes": "clicks.parquet", "wait": "30m"} | declared.pop("served", {}),
        "user": "user",
        "item": "item",
        "time": "time",
        "request": "request",
        "context": {"device": {"type": "categorical", "default": "phone"}, "load": {"type": "numeric"}},
    }
    content: dict[str, Any] = {"name": "shop", "root": str(folder), "interactions": log_declared}
    tables = {name: {"path": f"{name}.parquet", "id": "id"} for name in ("items", "users")}
    return Contract.model_validate(content | tables | declared)


def rows(contract: Contract, as_of: str | None = None) -> list[tuple[Any, ...]]:
    frame = open_log(contract, as_of, ["position", "version"]).frame
    columns = ["_request", "_user", "_item", "_label", "_raw.position", "_context.device", "_context.load"]
    return frame.select(columns).collect().rows()


def test_each_shown_candidate_is_a_row_with_its_label(tmp_path: Path):
    contract = written(tmp_path)
    assert rows(contract) == [
        ("a", 7, 1, 0, 2, "tv", 2.0),
        ("a", 7, 2, 1, 0, "tv", 2.0),
        ("a", 7, 3, 0, 1, "tv", 2.0),
        ("b", 8, 2, 0, 0, "phone", 1.5),
        ("c", 7, 1, 0, 0, "phone", None),
        ("c", 7, 3, 1, 1, "phone", None),
    ]
    times = open_log(contract).frame.select("_time").unique().sort("_time").collect()["_time"].to_list()
    assert times == [int(at(minute).timestamp() * 1e6) for minute in (0, 10, 70)]


def test_scores_of_a_shadow_are_no_rows(tmp_path: Path):
    """A shadow logs the same request once more; nobody saw its places."""
    log = [
        *LOG,
        served("a", 0, ["1", "2", "3"], [0, 1, 2], variant="shadow"),
        served("c", 70, ["2"], [0], variant="challenger"),
    ]
    (tmp_path / "plain").mkdir()
    assert rows(written(tmp_path, log))[:3] == rows(written(tmp_path / "plain"))[:3]
    assert [row[2] for row in rows(written(tmp_path, log)) if row[0] == "c"] == [1, 3, 2]
    assert outcomes_of(written(tmp_path, log[:-1])) == outcomes_of(written(tmp_path / "plain"))


def test_what_became_of_each_outcome(tmp_path: Path):
    contract = written(tmp_path)
    assert outcomes_of(contract) == Outcomes(
        used=2,
        repeated=1,
        late=1,
        early=1,
        unshown=1,
        unknown=1,
        undecided=2,
        twice=0,
        anonymous=0,
        hashed=0,
        answers=5,
    )
    told = {finding.column: finding for finding in served_findings(contract, "log")}
    assert told.keys() == {"repeated", "late", "early", "unshown", "unknown", "undecided"}
    assert told["late"].message.startswith("1 outcomes came more than 1800 s after their answer")
    assert told["undecided"].message.startswith("2 of 5 answers are younger than 1800 s")


def test_a_longer_wait_takes_late_outcomes_and_decides_less(tmp_path: Path):
    contract = written(tmp_path, served={"wait": "31m"})
    assert [(row[0], row[2]) for row in rows(contract) if row[3]] == [("a", 1), ("a", 2)]
    assert (outcomes_of(contract).late, outcomes_of(contract).undecided) == (0, 3)


def test_only_the_first_places_are_shown(tmp_path: Path):
    contract = written(tmp_path, served={"shown": 1})
    assert [(row[0], row[2], row[3]) for row in rows(contract)] == [("a", 2, 1), ("b", 2, 0), ("c", 1, 0)]
    assert outcomes_of(contract).unshown == 3  # item 1 of a, 9 of b, 3 of c


def test_outcomes_that_the_label_says_no_of(tmp_path: Path):
    contract = written(tmp_path, served={"label": "seconds > 3"})
    kinds = {"request": ["a", "a", "c"], "item": [2, 3, 1], "time": [at(1), at(1), at(71)], "seconds": [9, 1, None]}
    pl.DataFrame(kinds).write_parquet(tmp_path / "clicks.parquet")
    assert [(row[0], row[2]) for row in rows(contract) if row[3]] == [("a", 2)]


def test_as_of_a_day_reads_what_was_served_up_to_it(tmp_path: Path):
    later = served("f", 60 * 24, ["1", "2"], [0, 1])
    contract = written(tmp_path, [*LOG, later])
    assert {row[0] for row in rows(contract)} == {"a", "b", "c", "d", "e"}
    assert {row[0] for row in rows(contract, "2026-03-01")} == {"a", "b", "c"}


def test_an_answer_without_a_user_is_left_out_and_told(tmp_path: Path):
    contract = written(tmp_path, [LOG[0] | {"user": None}, *LOG[1:]])
    assert {row[0] for row in rows(contract)} == {"b", "c"}
    assert (outcomes_of(contract).anonymous, outcomes_of(contract).used) == (1, 1)


def test_of_a_request_that_was_answered_twice_the_last_answer_counts_for_each_item(tmp_path: Path):
    again = served("a", 5, ["1", "2"], [0, 1])
    contract = written(tmp_path, [*LOG, again])
    assert (outcomes_of(contract).twice, outcomes_of(contract).repeated) == (1, 0)
    told = {finding.column: finding for finding in served_findings(contract, "log")}
    assert told["twice"].message.endswith("of an item that several of them showed, the last counts alone.")
    found = [(row[2], row[3], row[4]) for row in rows(contract) if row[0] == "a"]
    # Item 3 was in the first answer alone; the click on 1 came in time of the second, the first on 2 before it.
    assert found == [(3, 0, 1), (1, 1, 0), (2, 1, 1)]


def test_age_and_end_are_those_of_the_servers_clock(tmp_path: Path):
    """A client whose clock is wrong makes no outcome late or early, and ends no log."""
    log = [row | {"time": at(60 * 24 * 365 * 100)} if row["request"] == "b" else row for row in LOG]
    (tmp_path / "plain").mkdir()
    contract = written(tmp_path, log)
    assert outcomes_of(contract) == outcomes_of(written(tmp_path / "plain"))
    assert sorted(map(str, rows(contract))) == sorted(map(str, rows(written(tmp_path / "plain"))))
    times = open_log(contract).frame.filter(pl.col("_request") == "b").select("_time").collect()["_time"].to_list()
    assert times == [int(log[1]["time"].timestamp() * 1e6)]  # the row's time is the request's
    assert {row[0] for row in rows(contract, "2026-03-01")} == {"a", "c"}
    assert outcomes_of(contract, "2026-03-01").answers == 4


def test_hashed_users_are_text_and_told(tmp_path: Path):
    contract = written(tmp_path, [row | {"user": "0af3", "user_hashed": True} for row in LOG], users=None)
    assert {row[1] for row in rows(contract)} == {"0af3"}
    assert outcomes_of(contract).hashed == 5


def test_ids_that_are_none_of_the_catalogue_are_refused(tmp_path: Path):
    hashed = [row | {"user": "0af3", "user_hashed": True} for row in LOG]
    with pytest.raises(DataError, match=r"column 'user': 5 ids, e\.g\. '0af3', are no whole numbers.*remove the table"):
        refuse_served_ids(written(tmp_path, hashed))
    with pytest.raises(DataError, match=r"column 'candidates': 1 ids, e\.g\. 'x'"):
        build_feature_set(written(tmp_path, [*LOG, served("x", 1, ["x"], [0])]), tmp_path / "out")


def test_tables_that_are_not_what_they_should_be_are_named(tmp_path: Path):
    contract = written(tmp_path)
    pl.DataFrame({"request": ["a"], "item": [1.5], "time": [NOON]}).write_parquet(tmp_path / "clicks.parquet")
    with pytest.raises(DataError, match=r"clicks.parquet: column 'item' holds Float64"):
        open_log(contract)
    nulls = {"request": ["a", None], "item": [1, 2], "time": [NOON, NOON]}
    pl.DataFrame(nulls).write_parquet(tmp_path / "clicks.parquet")
    with pytest.raises(DataError, match="column 'request' is missing in 1 rows"):
        open_log(contract)
    pl.DataFrame({"request": ["a"], "time": [NOON]}).write_parquet(tmp_path / "clicks.parquet")
    with pytest.raises(DataError, match="no column 'item'"):
        open_log(contract)
    pl.DataFrame({"request": ["a"], "time": [NOON]}).write_parquet(tmp_path / "served-1.parquet")
    with pytest.raises(DataError, match="no column 'user', so it is no log that `quadrank serve`"):
        open_log(contract)


def test_contracts_that_cannot_be(tmp_path: Path):
    contract = written(tmp_path).model_dump(mode="json")
    contract["interactions"]["served"]["wait"] = "30m"
    with pytest.raises(ValueError, match=r"interactions.label: a served log has its label from its outcomes"):
        Contract.model_validate(contract | {"interactions": contract["interactions"] | {"label": "clicked"}})
    with pytest.raises(ValueError, match="a served log is not split by files"):
        Contract.model_validate(contract | {"split": {"by": "files", "valid": "a", "test": "b"}})


def test_a_window_is_refused_because_late_outcomes_would_change_kept_days(tmp_path: Path):
    contract = written(tmp_path, split={"by": "days", "valid": 1, "test": 1})
    with pytest.raises(ConfigError, match="--window: outcomes of a day may come after its build"):
        build_feature_set(contract, tmp_path / "out", window=5)


def test_a_new_outcome_is_another_feature_set(tmp_path: Path):
    contract = written(tmp_path, [served(f"r{i}", i, ["1", "2"], [0, 1]) for i in range(90)])
    pl.DataFrame({"request": ["r3", "r40", "r57"], "item": [1, 1, 2], "time": [at(4), at(41), at(58)]}).write_parquet(
        tmp_path / "clicks.parquet"
    )
    first = build_feature_set(contract, tmp_path / "out").feature_set
    assert sum(window.positives for window in first.manifest.windows.values()) == 3
    assert sum(window.rows for window in first.manifest.windows.values()) == 2 * 60
    pl.DataFrame(
        {"request": ["r3", "r40", "r57", "r58"], "item": [1, 1, 2, 2], "time": [at(4), at(41), at(58), at(59)]}
    ).write_parquet(tmp_path / "clicks.parquet")
    second = build_feature_set(contract, tmp_path / "out")
    assert not second.reused
    assert sum(window.positives for window in second.feature_set.manifest.windows.values()) == 4
    assert any("30 of 90 answers" in text for text in second.feature_set.manifest.findings)


def test_context_that_is_not_json_is_named(tmp_path: Path):
    with pytest.raises(DataError, match="column 'context' is not JSON"):
        open_log(written(tmp_path, [LOG[0] | {"context": "{"}]))


def test_whole_numbers_of_the_context_stay_whole(tmp_path: Path):
    log = [served("a", 0, ["1"], [0], context=json.dumps({"hour": 20})), served("b", 40, ["1"], [0], context="{}")]
    contract = written(tmp_path, log)
    declared = contract.model_dump(mode="json")
    declared["interactions"]["served"]["wait"] = "30m"
    declared["interactions"]["context"] = {"hour": {"type": "categorical"}}
    frame = open_log(Contract.model_validate(declared)).frame
    assert frame.collect_schema()["_context.hour"] == pl.Int64
    assert frame.select("_context.hour").collect()["_context.hour"].to_list() == [20]


def test_a_label_of_outcomes_that_fails_for_a_value_is_named(tmp_path: Path):
    contract = written(tmp_path, served={"label": "CAST(l AS INT) > 1"})
    table = pl.DataFrame(OUTCOMES, schema=["request", "item", "time"], orient="row")
    table.with_columns(l=pl.Series(["x"] * len(table))).write_parquet(tmp_path / "clicks.parquet")
    words = r"clicks\.parquet: interactions\.served\.label 'CAST\(l AS INT\) > 1' cannot be computed of every row"
    with pytest.raises(DataError, match=words):
        rows(contract)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([0, 1, None, 2, 1, 0, 1, 3], r"'l': 2 of 8 outcomes are neither 0 nor 1, e\.g\. 2\. Write it as a condition"),
        (
            [0.7, 1, 0, 1, 1, 0, 1, 1],
            r"'l': 1 of 8 outcomes are neither 0 nor 1, e\.g\. 0\.7\. Write it as a condition",
        ),
        (["yes"] * 8, r"'l' is String, expected 0/1 or a condition such as `amount > 0`"),
    ],
)
def test_a_label_of_outcomes_is_0_or_1(tmp_path: Path, labels: list[Any], words: str):
    """Else a purchase of two pieces would be none."""
    contract = written(tmp_path, served={"label": "l"})
    table = pl.DataFrame(OUTCOMES, schema=["request", "item", "time"], orient="row")
    table.with_columns(l=pl.Series(labels, strict=False)).write_parquet(tmp_path / "clicks.parquet")
    with pytest.raises(DataError, match=r"clicks\.parquet: interactions\.served\.label " + words):
        rows(contract)


@pytest.mark.parametrize("as_of", [None, "2026-03-01"])
def test_answers_of_which_none_is_decided_are_no_empty_log(tmp_path: Path, as_of: str | None):
    contract = written(tmp_path, LOG[-2:])
    words = r"served-\*\.parquet: none of its answers makes a row: .* a user and .* older than .*\.wait \(1800 s\)"
    with pytest.raises(DataError, match=words):
        build_feature_set(contract, tmp_path / "out", as_of)


@pytest.mark.parametrize("time", ["time", "at"])
def test_outcomes_without_a_zone_are_refused(tmp_path: Path, time: str):
    """Read as UTC, those of a logger in another zone would be late, or early, by hours."""
    contract = written(tmp_path).model_dump(mode="json")
    contract["interactions"]["time"] = time
    clicks = pl.DataFrame({"request": ["a"], "item": [2], "time": [at(1).replace(tzinfo=None)]})
    clicks.write_parquet(tmp_path / "clicks.parquet")
    with pytest.raises(DataError) as caught:
        build_feature_set(Contract.model_validate(contract), tmp_path / "built")
    assert str(caught.value) == (
        f"{tmp_path}/clicks.parquet: time column 'time' has no time zone, that of {tmp_path}/served-*.parquet ('time') "
        "has one. Write both in UTC, with the zone."
    )
