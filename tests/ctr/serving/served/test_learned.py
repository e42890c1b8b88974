"""From served answers to a feature set and back: what is learned is what was served, and replay agrees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from ctr.config import ModelConfig
from ctr.serving.ranker import Ranker
from features.build.build import build_feature_set
from features.contract.contract import Contract
from features.encoding.encoder import Encoder
from features.store.feature_set import SPLITS, FeatureSet
from pipelines.serving.replay import replay_log
from tests.ctr.serving.served.perfect import SECOND, raw_of, serve, some_requests
from tests.ctr.serving.shop import export
from tests.features.decoded import decoded
from tests.trained import random_model

REQUESTS, FIRST, STEP = 60, 1_004_400, 300  # the first hour after the raw log begins at second 1,000,800
WAIT = 1_800


def contract_of(folder: Path, old: Contract) -> Contract:
    """The shop's contract with the served log in place of its raw log."""
    log = {
        "path": "served/served-*.parquet",
        "served": {"outcomes": "clicks.parquet", "wait": f"{WAIT}s"},
        "user": "user",
        "item": "item",
        "time": "time",
        "request": "request",
        "context": old.interactions.model_dump(mode="json")["context"],
        "item_min_count": 1,
        "user_min_count": 1,
    }
    content = old.model_dump(mode="json", exclude={"interactions", "history", "counters"})
    return Contract.model_validate(
        content
        | {"root": str(folder), "interactions": log}
        | {
            "history": {"max_len": 4, "events": "clicked = 1", "columns": {"pause": {"type": "gap"}}},
            "counters": {"item_rate": {"of": "item", "value": "rate"}, "shown": {"of": "user", "value": "count"}},
        }
    )


@pytest.fixture(scope="module")
def folder(ranker: Ranker, feature_set: FeatureSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 answers of five minutes' distance, what users clicked, and the tables of the shop."""
    folder, raw = tmp_path_factory.mktemp("learned"), raw_of(feature_set)
    log = pl.read_parquet(raw / "log.parquet")
    requests = some_requests(ranker, log, REQUESTS, FIRST, STEP)
    served = serve(ranker, requests, folder / "served")
    for part in (folder / "served").iterdir():  # as if the server had been there at the time of each request
        rows = pq.read_table(part)
        pq.write_table(rows.set_column(rows.schema.get_field_index("logged"), "logged", rows["time"]), part)
    clicks = []
    for i, row in enumerate(served.to_dicts()):
        best = row["candidates"][row["positions"].index(0)]
        second = FIRST + STEP * i
        if i % 2 == 0:  # in time
            clicks.append({"request": row["request"], "item": int(best), "time": (second + 20) * SECOND})
        if i % 5 == 0:  # the last candidate, too late
            clicks.append({"request": row["request"], "item": int(row["candidates"][-1]), "time": 10**13})
    pl.DataFrame(clicks).with_columns(pl.from_epoch("time", "us").dt.replace_time_zone("UTC")).write_parquet(
        folder / "clicks.parquet"
    )
    for name in ("items", "users", "text"):
        (folder / f"{name}.parquet").write_bytes((raw / f"{name}.parquet").read_bytes())
    return folder


@pytest.fixture(scope="module")
def built(folder: Path, ranker: Ranker) -> FeatureSet:
    return build_feature_set(contract_of(folder, ranker.encoder.contract), folder / "out").feature_set


@pytest.fixture(scope="module")
def impressions(folder: Path) -> list[dict[str, Any]]:
    """Each decided impression in plain Python, by time and place of the candidate."""
    served = pl.read_parquet(folder / "served/*.parquet").sort("time").to_dicts()
    found = []
    for i, row in enumerate(served):
        if FIRST + STEP * i > FIRST + STEP * (REQUESTS - 1) - WAIT:
            continue
        for item, position in zip(row["candidates"], row["positions"], strict=True):
            clicked = i % 2 == 0 and position == 0
            found.append({"second": FIRST + STEP * i, "user": row["user"], "item": int(item), "label": int(clicked)})
    return found


def test_what_is_learned_is_what_was_served(built: FeatureSet, impressions: list[dict[str, Any]]):
    rows = decoded(built)
    assert len(rows) == len(impressions) == 5 * (REQUESTS - WAIT // STEP)
    key = ("time", "user", "item")
    got = sorted((row["time"] // SECOND, row["user"], row["item"], row["label"]) for row in rows)
    wanted = sorted((row["second"], row["user"], row["item"], row["label"]) for row in impressions)
    assert got == wanted and sum(row[3] for row in wanted) == 27
    assert len({tuple(row[name] for name in key) for row in rows}) == len(rows)
    for row in rows:
        assert row["device"] == "tv"
        earlier = [
            one["item"]
            for one in impressions
            if one["user"] == row["user"] and one["label"] and one["second"] < row["time"] // SECOND
        ]
        assert row["history.item"] == earlier[-4:]


def test_counters_of_the_rows_by_hand(built: FeatureSet, impressions: list[dict[str, Any]]):
    encoder, mean = Encoder.load(built.path), built.manifest.label_mean
    assert mean is not None
    compared = 0
    for split in SPLITS:
        for rows in built.rows(split):
            for place in range(0, len(rows["user"]), 7):
                second = rows["time"][place] // SECOND
                user, item = encoder.users.value(rows["user"][place]), encoder.items.value(rows["item"][place])
                before = [one for one in impressions if one["second"] < second]
                of_item = [one["label"] for one in before if one["item"] == item]
                rate = (sum(of_item) + 10 * mean) / (len(of_item) + 10)
                shown = sum(one["user"] == user for one in before)
                assert encoder.candidate["item_rate"].raw_value(rows["item_rate"][place]) == pytest.approx(rate, 1e-4)
                assert encoder.context["shown"].raw_value(rows["shown"][place]) == pytest.approx(shown, abs=1e-3)
                compared += len(of_item) > 0
    assert compared > 10


def test_outcomes_that_did_not_count_are_told(built: FeatureSet):
    told = " ".join(built.manifest.findings)
    assert "12 outcomes came more than 1800 s after their answer" in told
    assert f"6 of {REQUESTS} answers are younger than 1800 s" in told


def test_a_model_of_the_served_log_serves_and_replays(built: FeatureSet, folder: Path, tmp_path: Path):
    """A bundle that learned from a served log: its own answers, of raw events of that log, are equal offline too."""
    model = random_model(built, ModelConfig(embedding_dim=4, attention_dim=4))
    export(model, built, tmp_path / "bundle", version="second")
    ranker = Ranker.load(tmp_path / "bundle")
    moment = FIRST + STEP * REQUESTS + 4 * 3600
    rows = decoded(built)
    user = max({row["user"] for row in rows}, key=lambda one: sum(row["user"] == one for row in rows))
    past = [row for row in rows if row["user"] == user]
    events = [
        {"item": row["item"], "time": f"{pl.Series([row['time']]).cast(pl.Datetime('us')).item().isoformat()}Z"}
        | {"clicked": int(row["label"])}
        for row in past
    ]
    when = pl.Series([moment * SECOND]).cast(pl.Datetime("us")).item().isoformat()
    request = {"user": user, "time": when, "context": {"load": 1.0}, "history": events, "candidates": [101, 102, 103]}
    serve(ranker, [request], tmp_path / "served")
    found = replay_log(tmp_path / "served", tmp_path / "bundle", None, str(folder), Console(quiet=True))
    assert set(found["shares"].values()) == {1.0} and found["scores"] == 1.0
    assert len(ranker.encoder.event) == 1 and found["examples"] == {}
