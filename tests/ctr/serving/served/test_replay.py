"""Served features computed again offline: all equal where the client told the truth; what is not is found and named."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from ctr.serving.ranker import Ranker
from ctr.serving.served.logged import read_answers
from ctr.serving.served.replay import replay
from features.errors import ConfigError, DataError
from features.store.feature_set import FeatureSet
from features.store.served_schema import SERVED
from pipelines.serving.replay import replay_log
from tests.ctr.serving.served.perfect import perfect, raw_of, serve, some_requests

FLOATS = {"context_load", "context_user_rate", "candidate_item_rate", "candidate_item_count", "history_residual"}


@pytest.fixture(scope="module")
def root(feature_set: FeatureSet) -> Path:
    return raw_of(feature_set)


@pytest.fixture(scope="module")
def log(root: Path) -> pl.DataFrame:
    return pl.read_parquet(root / "log.parquet")


@pytest.fixture(scope="module")
def served(ranker: Ranker, log: pl.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The log of 40 requests of a client that tells the truth."""
    folder = tmp_path_factory.mktemp("truth")
    serve(ranker, some_requests(ranker, log, 40), folder)
    return folder


def replayed(folder: Path, ranker: Ranker, root: Path, **options: Any) -> dict[str, Any]:
    options = {"rows": None, "root": str(root)} | options
    return replay_log(folder, ranker.bundle.path, **options, console=Console(quiet=True))


def changed(served: Path, folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The log with its first answer changed."""
    (part,) = served.iterdir()
    rows = pq.read_table(part).to_pylist()
    change(rows[0])
    pq.write_table(pa.Table.from_pylist(rows, SERVED), folder / "served-1.parquet")
    return folder


def of(row: dict[str, Any], name: str) -> dict[str, Any]:
    return next(one for one in row["inputs"] if one["name"] == name)


def test_all_that_a_truthful_client_was_served_is_equal(served: Path, ranker: Ranker, root: Path, log: pl.DataFrame):
    found = replayed(served, ranker, root)
    assert (found["answers"], found["compared"], found["without_user"]) == (40, 40, 0)
    assert found["shares"].keys() >= FLOATS | {"history", "history_item", "candidate_item", "history_pause"}
    assert set(found["shares"].values()) == {1.0}
    assert (found["scores"], found["examples"], found["raw_log"]) == (1.0, {}, True)
    lengths = [len(one.history) for one in read_answers(served)]
    assert sum(lengths) == 40 * 6  # every history is full


def test_a_changed_counter_is_found_and_named(
    served: Path, ranker: Ranker, root: Path, log: pl.DataFrame, tmp_path: Path
):
    def change(row: dict[str, Any]) -> None:
        of(row, "candidate_item_rate")["numbers"][3] += 0.01

    found = replayed(changed(served, tmp_path, change), ranker, root)
    assert {name for name, share in found["shares"].items() if share < 1} == {"candidate_item_rate"}
    assert found["shares"]["candidate_item_rate"] == 199 / 200
    (example,) = found["examples"]["candidate_item_rate"]
    assert (example["request"], example["place"]) == ("r0", 3)
    assert example["served"] - example["offline"] == pytest.approx(0.01, abs=1e-6)


def test_a_changed_score_is_found(served: Path, ranker: Ranker, root: Path, log: pl.DataFrame, tmp_path: Path):
    def change(row: dict[str, Any]) -> None:
        row["scores"][2] *= 1.001

    found = replayed(changed(served, tmp_path, change), ranker, root)
    assert found["scores"] == 199 / 200
    assert [(one["request"], one["place"]) for one in found["examples"]["score"]] == [("r0", 2)]
    assert set(found["shares"].values()) == {1.0}


def test_an_event_that_the_server_lacked_is_found_and_named(
    ranker: Ranker, root: Path, log: pl.DataFrame, tmp_path: Path
):
    request = perfect(ranker, log, "u3", 1_000_100, [101, 102], "lacks")
    newest = request["history"].pop(max(range(len(request["history"])), key=lambda i: request["history"][i]["time"]))
    serve(ranker, [request], tmp_path)
    found = replayed(tmp_path, ranker, root)
    mine = log.filter(pl.col("user") == "u3").sort("time")
    assert found["shares"]["history"] < 1 and found["shares"]["history_hash"] == 0
    assert found["shares"]["candidate_item"] == found["shares"]["candidate_item_rate"] == found["scores"] == 1
    offline = mine["item"].tail(6).to_list()
    without = mine["item"].tail(7).to_list()[:6]
    assert offline[-1] == newest["item"]
    differ = [i for i in range(6) if offline[i] != without[i]]
    assert found["shares"]["history"] == 1 - len(differ) / 6
    assert [(one["place"], one["served"], one["offline"]) for one in found["examples"]["history"]] == [
        (i, str(without[i]), str(offline[i])) for i in differ[:3]
    ]


def test_an_event_after_the_request_is_found_and_named(ranker: Ranker, root: Path, log: pl.DataFrame, tmp_path: Path):
    """A client with ready columns sends what its user did later."""
    mine = log.filter(pl.col("user") == "u5").sort("time")
    second = mine["time"][2] + 1  # the user has three events before
    request = perfect(ranker, log, "u5", second, [101, 102], "leaks")
    request["history"] = [{"item": item, "label": 1} for item in mine["item"].head(4).to_list()]
    serve(ranker, [request], tmp_path)
    found = replayed(tmp_path, ranker, root)
    items = mine["item"].to_list()
    equal = sum(items[i] == items[i + 1] for i in range(3))  # each stands one place too far on
    assert found["shares"]["history"] == equal / 4 < 1
    first = found["examples"]["history"][0]
    assert (first["place"], first["served"], first["offline"]) == (0, str(mine["item"][0]), None)
    assert found["shares"]["candidate_item_rate"] == 1


def test_counters_of_the_logs_end_are_found_where_they_are_not_those_of_the_time(
    ranker: Ranker, root: Path, log: pl.DataFrame, tmp_path: Path
):
    """Without counters of the client the bundle's are served: in its middle they know the future."""
    request = perfect(ranker, log, "u3", 500_000, [101, 102, 103], "future")
    request["candidates"] = [101, 102, 103]
    serve(ranker, [request], tmp_path)
    found = replayed(tmp_path, ranker, root)
    wrong = {name for name, share in found["shares"].items() if share < 1}
    assert wrong == {"candidate_item_rate", "candidate_item_count"}


@pytest.mark.parametrize("batch", [3, 500])
def test_the_newest_answers_alone(served, ranker, root, tmp_path, monkeypatch, batch: int):
    monkeypatch.setattr("ctr.serving.served.logged.BATCH", batch)

    def other_scores(row: dict[str, Any]) -> None:
        row["scores"] = [score / 2 for score in row["scores"]]

    folder = changed(served, tmp_path, other_scores)  # the oldest one
    newest = replayed(folder, ranker, root, rows=7)
    assert (newest["compared"], newest["scores"]) == (7, 1.0)
    assert replayed(folder, ranker, root)["scores"] < 1
    wanted = pq.read_table(folder)["request"].to_pylist()[::-1]
    assert [one.request for one in read_answers(folder)] == wanted and len(wanted) == 40


def test_without_a_raw_log_scores_alone(served: Path, ranker: Ranker, root: Path, log: pl.DataFrame, tmp_path: Path):
    found = replayed(served, ranker, tmp_path)
    assert (found["scores"], found["shares"], found["raw_log"]) == (1.0, {}, False)


def test_answers_of_other_versions_are_counted_and_refused_alone(
    served: Path, ranker: Ranker, root: Path, log: pl.DataFrame, tmp_path: Path
):
    found = replayed(changed(served, tmp_path, lambda row: row.update(version="other")), ranker, root)
    assert (found["compared"], found["other_versions"]) == (39, {"other": 1})
    rows = pl.read_parquet(tmp_path / "served-1.parquet").filter(pl.col("version") == "other")
    pq.write_table(rows.to_arrow().cast(SERVED), tmp_path / "served-1.parquet")
    with pytest.raises(ConfigError, match=r"none of 1 answers is of run-1; there are those of other\. Name the bundle"):
        replayed(tmp_path, ranker, root)


def test_answers_that_are_older_than_those_that_were_looked_at_are_not_denied(
    served: Path, ranker: Ranker, root: Path, log: pl.DataFrame, tmp_path: Path
):
    (part,) = served.iterdir()
    rows = pq.read_table(part).to_pylist()
    for row in rows[-3:]:
        row["version"] = "other"
    pq.write_table(pa.Table.from_pylist(rows, SERVED), tmp_path / "served-1.parquet")
    with pytest.raises(ConfigError, match=r"none of the newest 3 answers is of run-1; .* Look at more with --rows, or"):
        replayed(tmp_path, ranker, root, rows=3)
    assert replayed(tmp_path, ranker, root, rows=4)["compared"] == 1


def test_columns_come_in_the_order_of_the_models_inputs(served: Path, ranker: Ranker, root: Path, log: pl.DataFrame):
    """And not in one that each process draws, so that the reports of two nights can be compared."""
    names = list(replayed(served, ranker, root, rows=1)["shares"])
    (first, *_) = read_answers(served)
    inputs = [name for name in names if name not in ("history", "history_hash")]
    assert inputs == list(first.inputs)


def test_pasts_of_hashed_users_are_left_out_and_told(
    ranker: Ranker, root: Path, log: pl.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("QUADRANK_LOG_KEY", "k")
    serve(ranker, some_requests(ranker, log, 3), tmp_path, users="hashed")
    found = replayed(tmp_path, ranker, root)
    assert (found["without_user"], found["without_score"], found["scores"]) == (3, 0, 1.0)
    assert found["shares"].keys() == {
        *("context_device", "context_load", "candidate_item", "candidate_item_rate", "candidate_item_count")
    }
    assert set(found["shares"].values()) == {1.0}


def test_the_index_of_a_hashed_id_is_not_logged_and_scores_that_need_it_are_left_out(
    ranker: Ranker, served: Path, log: pl.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The bundle's vocabulary would turn the index back into the id."""
    name = f"user_{ranker.encoder.contract.user_field}"
    monkeypatch.setenv("QUADRANK_LOG_KEY", "k")
    anonymous = some_requests(ranker, log, 1)[0] | {"user": None}
    serve(ranker, [*some_requests(ranker, log, 3), anonymous], tmp_path, users="hashed")
    hashed, raw = list(read_answers(tmp_path)), list(read_answers(served))
    assert [name in one.inputs for one in hashed] == [one.user is None for one in hashed]
    assert all(one.inputs.keys() == raw[0].inputs.keys() - {name} for one in hashed if one.user is not None)
    # A model that reads the index: nothing can be said of these scores.
    reading = copy(ranker)
    reading.inputs = (*ranker.inputs, SimpleNamespace(name=name, shape=[1]))
    found = replay([one for one in hashed if one.user is not None], reading, None)
    assert (found.compared, found.without_score, found.scores.of) == (3, 3, {})
    with pytest.raises(DataError, match=f"lacks the input '{name}'"):
        replay([replace(one, user_hashed=False) for one in hashed if one.user is not None], reading, None)


def test_a_log_that_is_none_is_refused(ranker: Ranker, root: Path, log: pl.DataFrame, tmp_path: Path):
    with pytest.raises(ConfigError, match="holds no served"):
        replayed(tmp_path, ranker, root)
    (tmp_path / "served-1.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"served-1\.parquet: cannot be read"):
        replayed(tmp_path, ranker, root)
    pl.DataFrame({"request": ["a"]}).write_parquet(tmp_path / "served-1.parquet")
    with pytest.raises(DataError, match="no column 'time'"):
        replayed(tmp_path, ranker, root)


def test_a_row_of_the_log_by_hand(ranker: Ranker, root: Path, log: pl.DataFrame, tmp_path: Path):
    request = perfect(ranker, log, "u3", 1_000_100, [101, 999], "one") | {"top_k": 1}
    (row,) = serve(ranker, [request], tmp_path).to_dicts()
    mine = log.filter(pl.col("user") == "u3").sort("time")
    assert row["time"].timestamp() == 1_000_100 and row["logged"].timestamp() > 1.7e9
    assert row["history_items"] == [str(item) for item in mine["item"].tail(6)]
    assert row["history_newest"].timestamp() == mine["time"][-1]
    assert row["candidates"] == ["101", "999"]
    assert sorted(row["positions"], key=str) == [0, None]
    assert (row["user"], row["user_hashed"], row["user_columns"]) == ("u3", False, "{}")
    assert json.loads(row["context"])["device"] == "tv"
    inputs = {one["name"]: one for one in row["inputs"]}
    assert inputs["candidate_item"]["indices"] == [1 + 2, 1] and inputs["candidate_item"]["numbers"] is None
    assert np.isfinite(inputs["candidate_item_rate"]["numbers"]).all()
    assert len(inputs["history_residual"]["numbers"]) == 6
