"""A bundle whose model compares the candidates of a request: what it reads online is what the log held."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from rich.console import Console
from starlette.testclient import TestClient

from ctr.config import ModelConfig
from ctr.data.feature_tables import frozen_tables
from ctr.diagnosis.occlusion import explain
from ctr.diagnosis.permutation_importance import permutation_importance
from ctr.evaluation.boosting import tabular_control
from ctr.export.row_request import RowRequest
from ctr.model.click_model import ClickModel
from ctr.serving.answering.answers import answer
from ctr.serving.answering.versions import PointerSource
from ctr.serving.items.new_items import items_of_json
from ctr.serving.items.upsert import upsert_items
from ctr.serving.ranker import Ranker
from ctr.serving.server.app import Server
from features.encoding.encoder import EncodedRequest, Encoder
from features.encoding.request import Limits, parse_request
from features.monitor.profile.file import load_profile
from features.store.feature_set import FeatureSet
from features.store.pointer import point_at
from pipelines.serving.replay import replay_log
from tests.ctr.serving.served.perfect import counter_at, serve
from tests.ctr.serving.shop import export, serve_config
from tests.listed import COLUMNS, START, build_listed, expected, listed_log, stored_rows, write_listed
from tests.trained import random_model

LIST = [101, 104, 109, 117, 103]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lists")
    write_listed(folder)
    return folder


@pytest.fixture(scope="module")
def listed(raw: Path) -> FeatureSet:
    return build_listed(raw)


@pytest.fixture(scope="module")
def list_model(listed: FeatureSet) -> ClickModel:
    return random_model(listed, ModelConfig(embedding_dim=4, attention_dim=4), seed=2)


@pytest.fixture(scope="module")
def bundle(list_model: ClickModel, listed: FeatureSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(list_model, listed, tmp_path_factory.mktemp("bundles") / "first", version="first").path


@pytest.fixture
def lists(bundle: Path) -> Ranker:
    return Ranker.load(bundle)


def encoded(ranker: Ranker, candidates: list[Any]) -> EncodedRequest:
    request = {"user": "u1", "time": START + 200_000, "context": {"load": 0.5}, "candidates": candidates}
    return ranker.encode(parse_request(request, ranker.encoder.contract))


def check(ranker: Ranker, found: EncodedRequest) -> None:
    """The relative columns are those of the numbers that the ranker read, by definition."""
    encoder = ranker.encoder
    prices = encoder.item_numbers["price"][found.candidate_item].tolist()
    numbers = [found.candidate[name].tolist() for name in ("rate", "shown")]
    rows = [dict(zip(("rate", "shown", "price"), row, strict=True)) for row in zip(*numbers, prices, strict=True)]
    for place, wanted in enumerate(expected(encoder, rows)):
        for name in COLUMNS:
            raw = encoder.relative[name].raw_value(found.candidate[name][place])
            got = math.nan if raw is None else raw
            assert got == pytest.approx(wanted[name], rel=2e-4, abs=2e-5, nan_ok=True), (name, place)


def test_lists_with_items_that_no_counter_knows_are_exported_and_replayed(tmp_path: Path) -> None:
    """An item that was never shown before has no age and no mean: the candidates of its list are compared without."""
    log = listed_log().with_columns(read=pl.col("load") * 60)
    log = log.with_columns(item=pl.when(pl.col("time").rank() > 0.85 * pl.len()).then(pl.col("time")).otherwise("item"))
    write_listed(tmp_path, log)
    compared = ["rank", "difference"]
    counters = {
        "age": {"of": "item", "value": "age", "relative": compared},
        "length": {"of": "item", "value": "mean", "number": "read", "relative": compared},
    }
    built = build_listed(tmp_path, {"counters": counters})
    age_N = np.concatenate([rows["age"] for rows in built.rows("test")])
    assert np.isnan(age_N).mean() > 0.5, "most candidates are new"
    model = random_model(built, ModelConfig(embedding_dim=4, attention_dim=4), seed=2)
    bundle = export(model, built, tmp_path / "bundle", version="first")
    assert Ranker.load(bundle.path).replay() <= 1e-5


def test_logged_lists_sent_as_requests_are_read_as_they_were_stored(lists: Ranker, listed: FeatureSet) -> None:
    encoder, compared = lists.encoder, 0
    rows = stored_rows(listed)
    for key in sorted({(row["user"], row["page"]) for row in rows if row["split"] == "test"}):
        own = [row for row in rows if (row["user"], row["page"]) == key]
        if len({row["split"] for row in own}) > 1:
            continue
        sent = [
            {"item": row["item"]}
            | {name: encoder.candidate[name].raw_value(np.float32(row[name])) for name in ("rate", "shown")}
            for row in own
        ]
        found = encoded(lists, sent)
        for name in COLUMNS:
            got = [encoder.relative[name].raw_value(value) for value in found.candidate[name]]
            wanted = [row[name] for row in own]
            values = [math.nan if value is None else value for value in got]
            np.testing.assert_allclose(values, wanted, rtol=1e-5, atol=1e-6, err_msg=f"{name} {key}")
        compared += 1
    assert compared >= 8


@pytest.mark.parametrize(
    "candidates",
    [
        LIST,
        [101],
        [999, 101],
        [999],
        [101, 101, 104, 101],
        [{"item": 101, "rate": 0.9}, 104, {"item": 109, "rate": 0.0}, {"item": 103, "shown": 50.0}],
        list(range(100, 125)),
    ],
    ids=["a list", "one", "one unknown", "unknown alone", "duplicates", "counters of some", "every item"],
)
def test_candidates_are_compared_by_what_the_ranker_reads_of_them(lists: Ranker, candidates: list[Any]) -> None:
    found = encoded(lists, candidates)
    assert set(COLUMNS) < set(found.candidate)
    check(lists, found)


def test_a_fresher_counter_moves_the_others_too(lists: Ranker) -> None:
    before = encoded(lists, LIST)
    fresher = {name: values.copy() for name, values in lists.counters.items.items()}
    fresher["rate"][lists.encoder.items.index(103)] = 0.95
    lists.counters = replace(lists.counters, items=fresher)
    after = encoded(lists, LIST)
    check(lists, after)
    assert (after.candidate["rate"][:4] == before.candidate["rate"][:4]).all()
    assert (after.candidate["rate_difference"][:4] < before.candidate["rate_difference"][:4]).all()


def test_a_score_depends_on_the_other_candidates_and_not_on_their_order(lists: Ranker) -> None:
    together = lists.scores(encoded(lists, LIST))[:, 0]
    order = [3, 0, 4, 2, 1]
    again = lists.scores(encoded(lists, [LIST[place] for place in order]))[:, 0]
    np.testing.assert_allclose(again, together[order], rtol=1e-5)
    alone = np.concatenate([lists.scores(encoded(lists, [item]))[:, 0] for item in LIST])
    assert np.abs(alone - together).max() > 1e-3


def test_golden_requests_hold_a_logged_list_as_the_feature_set_does(bundle: Path, listed: FeatureSet) -> None:
    golden = Ranker.load(bundle).bundle.golden()
    cases = {case.name: case for case in golden.cases}
    assert {"logged", "one candidate", "candidates alone"} <= set(cases)
    logs = listed_log()
    lists = {tuple(sorted(page["item"])) for _, page in logs.group_by("user", "page")}
    logged = [case.request["candidates"] for name, case in cases.items() if name.startswith("logged")]
    assert all(tuple(sorted(entry["item"] for entry in one)) in lists for one in logged)
    assert max(map(len, logged)) > 1
    assert all(set(entry) == {"item", "rate", "shown"} for one in logged for entry in one)


def test_new_and_changed_prices_are_compared(bundle: Path, tmp_path: Path) -> None:
    """Of two upserts, the second changes what the first had brought."""
    first = [{"item": 900, "columns": {"price": 77.0}}, {"item": 101, "columns": {"price": 0.5}}]
    second = [{"item": 900, "columns": {"price": 1.5}}, {"item": 901, "columns": {"price": 200.0}}]
    folder, prices = bundle, {}
    for number, entries in enumerate((first, second)):
        body = {"items": entries}
        made = upsert_items(folder, lambda encoder, body=body: items_of_json(encoder, body, 10), tmp_path / str(number))
        folder, ranker = made.path, Ranker.load(made.path)
        found = encoded(ranker, [900, 101, 102, 901])
        check(ranker, found)
        read = ranker.encoder.item["price"]
        raws = [read.raw_value(value) for value in ranker.encoder.item_numbers["price"][found.candidate_item]]
        prices[number] = [None if one is None else round(one, 3) for one in raws]
    assert prices == {0: [77.0, 0.5, 3.0, None], 1: [1.5, 0.5, 3.0, 200.0]}


def test_a_list_of_a_size_that_training_never_saw_is_told_of(bundle: Path, lists: Ranker, tmp_path: Path) -> None:
    def answered(count: int) -> Any:
        body = json.dumps({"user": "u1", "candidates": [*range(100, 100 + count)]}).encode()
        return json.loads(answer(lists, body, Limits()).body)

    assert [answered(count).get("unusual") for count in (1, 7, 8, 25)] == [
        None,
        None,
        {"candidates": 8},
        {"candidates": 25},
    ]
    assert lists.rank({"candidates": list(range(100, 108))}).unusual == {"candidates": 8}
    shutil.copytree(bundle, tmp_path / "first")
    point_at(tmp_path, "first")
    with TestClient(Server(PointerSource(tmp_path / "CURRENT"), serve_config(), None).app()) as client:
        for count in (3, 8, 9):
            client.post("/v1/rank", json={"candidates": list(range(100, 100 + count))})
        assert 'quadrank_unusual_total{of="candidates"} 2.0' in client.get("/metrics").text


def test_a_bundle_that_compares_nothing_finds_no_list_unusual(ranker: Ranker) -> None:
    assert ranker.rank({"candidates": [110]}).unusual == {}
    assert "depends on the other candidates" not in (ranker.bundle.path / "MODEL_CARD.md").read_text()


def test_the_card_says_that_scores_depend_on_the_list(bundle: Path) -> None:
    card = (bundle / "MODEL_CARD.md").read_text()
    assert (
        "**A candidate's score depends on the other candidates of its request**: `rate_rank`, `rate_difference`" in card
    )
    assert "had 1 to 7 candidates (98 % of them 1 to 7)" in card
    assert "with fresher values of any of `rate`, `shown` |" in card


def test_what_was_served_is_computed_again(lists: Ranker, raw: Path, tmp_path: Path) -> None:
    log = listed_log()
    requests = []
    for number in range(6):
        second = START + 60_000 + 5_000 * number
        counters = [
            {"item": item} | {name: counter_at(lists, log, name, item, second) for name in ("rate", "shown")}
            for item in LIST[number % 3 :]
        ]
        context = {"load": 0.1, "active": counter_at(lists, log, "active", "u2", second)}
        past = log.filter((log["user"] == "u2") & (log["time"] < second))
        history = [{name: row[name] for name in ("item", "time", "clicked")} for row in past.to_dicts()]
        requests.append(
            {"id": f"r{number}", "user": "u2", "time": second, "context": context, "history": history}
            | {"candidates": counters}
        )
    serve(lists, requests, tmp_path)
    found = replay_log(tmp_path, lists.bundle.path, None, str(raw), Console(quiet=True))
    shares = {name: share for name, share in found["shares"].items() if name.startswith("candidate_")}
    assert shares.keys() >= {f"candidate_{name}" for name in COLUMNS} and set(shares.values()) == {1.0}


def test_diagnosis_drift_and_trees_read_them_as_numbers_of_the_candidate(
    list_model: ClickModel, listed: FeatureSet, lists: Ranker
) -> None:
    request = RowRequest.of_encoded(encoded(lists, LIST), 2)
    found = explain(list_model, frozen_tables(listed), request)
    assert set(COLUMNS) < set(found[0].contributions) and found[0].contributions["rate_rank"] != 0
    sides = {one.name: one.side for one in permutation_importance(list_model, listed, "train")}
    assert {sides[name] for name in COLUMNS} == {"candidate"}
    assert {f"candidate.{name}" for name in COLUMNS} <= set(load_profile(listed.path).splits["train"].columns)
    scores = tabular_control(listed, ("test",), 1)["test"]
    assert scores.shape[1] == listed.manifest.windows["test"].rows


def test_the_encoder_comes_back_as_it_was_saved(listed: FeatureSet, bundle: Path) -> None:
    first, second = Encoder.load(listed.path), Encoder.load(bundle)
    assert list(first.relative) == list(second.relative) == list(COLUMNS)
    assert first.item_numbers["price"].tolist()[2:] == pytest.approx(listed.items["price"].tolist()[2:], nan_ok=True)
    assert second.item_numbers["price"].tolist()[2:] == pytest.approx(listed.items["price"].tolist()[2:], nan_ok=True)
