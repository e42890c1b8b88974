"""The split: shares of the log by time with ties on one side, or shares of its users for good."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.build.build import build_feature_set
from features.contract.contract import Contract
from features.encoding.vocabulary import Vocabulary
from features.errors import DataError
from features.fitting.split import Splitter, TimeSplitter, fit_split
from features.sources.log import Log
from features.store.feature_set import SPLITS, FeatureSet
from tests.features.chunks import chunk_of
from tests.features.raw import Tables, decoded_rows, raw_log

ONE_USER = Vocabulary(pl.Series([1]))
BY_USER = {"split": {"by": "user", "valid": 0.25, "test": 0.25}}


def log_of(times: list[int]) -> Log:
    frame = pl.LazyFrame({"_time": times, "_user": [1] * len(times)}, schema_overrides={"_time": pl.Int64})
    return Log(frame, "log.csv", len(times))


def assigned(split: Splitter, times: np.ndarray) -> np.ndarray:
    return split.assign(chunk_of(times), ONE_USER)


def contract_of(valid: float, test: float) -> Contract:
    log = {"path": "log.csv", "user": "u", "item": "i", "time": "t", "label": "y"}
    content = {"name": "c", "interactions": log, "split": {"valid": valid, "test": test}}
    return Contract.model_validate(content)


def test_by_hand() -> None:
    times = [50, 10, 20, 30, 40, 60, 70, 80, 90, 100]
    split = fit_split(contract_of(0.25, 0.25), log_of(times))
    assert isinstance(split, TimeSplitter)
    # Rows 0-4 in order of time train, 5-6 validate, 7-9 test: places int(10 * 0.5) and int(10 * 0.75).
    assert (split.valid_from, split.test_from) == (60, 80)
    assert assigned(split, np.array([59, 60, 79, 80])).tolist() == [0, 1, 1, 2]


def test_a_tie_at_the_boundary_stays_on_one_side() -> None:
    times = [1, 2, 3, 4, 5, 5, 5, 6, 7, 7]
    split = fit_split(contract_of(0.25, 0.25), log_of(times))
    # Places 5 and 7 are the boundaries; the instant of place 5 begins at place 4 and all of it validates.
    window = assigned(split, np.array(times))
    assert window.tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]


@given(st.lists(st.integers(0, 12), min_size=5, max_size=40), st.sampled_from([0.1, 0.2, 0.3]))
def test_an_instant_is_never_divided_and_windows_follow_each_other(times: list[int], share: float) -> None:
    try:
        split = fit_split(contract_of(share, share), log_of(times))
    except DataError as error:
        assert "window is empty" in str(error)
        return
    window = assigned(split, np.array(times))
    by_time = [window[i] for i in np.argsort(times, kind="stable")]
    assert by_time == sorted(by_time) and set(by_time) == {0, 1, 2}
    assert all(len({w for t, w in zip(times, window, strict=True) if t == instant}) == 1 for instant in set(times))
    trains = log_of(times).frame.filter(split.is_train).collect()["_time"].to_list()
    assert sorted(trains) == sorted(t for t, w in zip(times, window, strict=True) if w == 0)


@pytest.mark.parametrize(("times", "which"), [([5, 5, 5, 5], "training"), ([1, 2, 3, 4, 5, 5, 5, 5], "validation")])
def test_an_empty_window_is_an_error(times: list[int], which: str) -> None:
    with pytest.raises(DataError, match=rf"log.csv: the {which} window is empty.*rows in all"):
        fit_split(contract_of(0.25, 0.25), log_of(times))


def users_of(built: FeatureSet) -> dict[str, set[Any]]:
    rows = decoded_rows(built)
    return {name: {row["user"] for row in rows if row["split"] == name} for name in SPLITS}


def more_users(tables: Tables) -> None:
    """Users 1 to 40 in the log, so that every window has some."""
    users = np.arange(1, 41)
    tables["users"] = pl.DataFrame({"user_id": users, "segment": [f"s{user}" for user in users]})
    tables["log"] = tables["log"].with_columns(pl.Series("user_id", np.resize(users, len(tables["log"]))))


def test_by_user_nobody_stands_in_two_windows(tmp_path: Path) -> None:
    built = build_feature_set(raw_log(tmp_path, more_users, BY_USER), tmp_path / "out").feature_set
    windows = users_of(built)
    assert sum(map(len, windows.values())) == 40 and all(windows.values())
    assert len(windows["train"]) > len(windows["valid"])


def test_by_user_a_longer_user_table_moves_nobody(tmp_path: Path) -> None:
    """Nor does it let test users into what is fitted: a segment is known exactly if its user trains."""

    def longer(tables: Tables) -> None:
        more_users(tables)
        silent = pl.DataFrame({"user_id": np.arange(1000, 1060), "segment": ["silent"] * 60})
        tables["users"] = pl.concat([silent, tables["users"]])

    short = build_feature_set(raw_log(tmp_path / "a", more_users, BY_USER), tmp_path / "out_a").feature_set
    long = build_feature_set(raw_log(tmp_path / "b", longer, BY_USER), tmp_path / "out_b").feature_set
    assert users_of(short) == users_of(long)
    for rows in long.rows("train"):
        assert (long.users["segment"][rows["user"]] >= 2).all()
    for rows in (*long.rows("valid"), *long.rows("test")):
        assert (long.users["segment"][rows["user"]] == 1).all()


def test_by_user_a_new_user_moves_nobody(tmp_path: Path) -> None:
    def newcomer(tables: Tables) -> None:
        more_users(tables)
        first = pl.int_range(pl.len()) == 0  # user 1 has other rows too
        tables["log"] = tables["log"].with_columns(user_id=pl.when(first).then(999).otherwise("user_id"))

    before = users_of(build_feature_set(raw_log(tmp_path / "a", more_users, BY_USER), tmp_path / "out_a").feature_set)
    after = users_of(build_feature_set(raw_log(tmp_path / "b", newcomer, BY_USER), tmp_path / "out_b").feature_set)
    assert {name: users - {999} for name, users in after.items()} == before != after


@pytest.mark.parametrize("text", [False, True], ids=["whole", "text"])
def test_by_user_shares_are_about_those_asked_for(tmp_path: Path, text: bool) -> None:
    def many(tables: Tables) -> None:
        users = np.resize(np.arange(0, 32_000, 16), 4_000)
        ids = pl.Series("user_id", [f"u{user}" for user in users] if text else users)
        tables["log"] = pl.concat([tables["log"].drop("user_id")] * 34)[:4_000].with_columns(ids)

    over = {"users": None, "embeddings": {}, **BY_USER}
    windows = users_of(build_feature_set(raw_log(tmp_path, many, over), tmp_path / "out").feature_set)
    shares = {name: len(users) / 2_000 for name, users in windows.items()}
    assert shares == pytest.approx({"train": 0.5, "valid": 0.25, "test": 0.25}, abs=0.03)


@pytest.mark.parametrize(
    ("days", "words"),
    [
        ([100, 101], r"log\.csv: the training window is empty: all 2 rows are of the newest days, which validate"),
        ([100, 102], r"log\.csv: the validation window is empty: no row from 1970-04-12 to before 1970-04-13\. Bring"),
    ],
)
def test_by_days_an_empty_window_names_its_days(days: list[int], words: str) -> None:
    contract = contract_of(0.25, 0.25).model_dump(exclude_unset=True) | {"split": {"by": "days", "valid": 1, "test": 1}}
    with pytest.raises(DataError, match=words):
        fit_split(Contract.model_validate(contract), log_of([day * 86_400_000_000 for day in days]))
