"""Popularity answers where the model cannot: in which order, for which reasons, and for which requests not."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from starlette.testclient import TestClient

from ctr.serving.answering.versions import PointerSource
from ctr.serving.ranker import Ranker
from ctr.serving.server.app import Server
from ctr.serving.settings import LogSettings, QueueSettings
from features.errors import NumericalError
from tests.ctr.serving.shop import REQUEST, serve_config


def client_of(folder: Path, **config: Any) -> tuple[TestClient, Server]:
    server = Server(PointerSource(folder / "CURRENT"), serve_config(**{"fallback": True, **config}))
    return TestClient(server.app()), server


@pytest.fixture
def rates(bundles: Path) -> dict[int, float]:
    """Each item's rate at the end of the log, read from the bundle's files."""
    folder = bundles / "first"
    with pa.memory_map(str(folder / "counters" / "items.arrow")) as file:
        rate = pa.ipc.open_file(file).read_all()["item_rate"].to_pylist()
    with pa.memory_map(str(folder / "vocabularies" / "items.arrow")) as file:
        ids = pa.ipc.open_file(file).read_all().column(0).to_pylist()
    return {item: rate[row + 2] for row, item in enumerate(ids)}  # rows 0 and 1 are padding and the unknown id


def broken(error: Exception) -> Callable[..., Any]:
    def scores(*_: Any) -> None:
        raise error

    return scores


@pytest.fixture
def without_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every version that is loaded from now on."""
    replay = Ranker.replay

    def replayed_and_broken(ranker: Ranker) -> float:
        worst = replay(ranker)
        ranker.scores = broken(RuntimeError("no memory"))  # type: ignore[method-assign]
        return worst

    monkeypatch.setattr(Ranker, "replay", replayed_and_broken)


@pytest.fixture
def popular(bundles: Path, without_scores: None) -> Iterator[TestClient]:
    with client_of(bundles)[0] as client:
        yield client


def items(answer: dict[str, Any]) -> list[Any]:
    return [entry["item"] for entry in answer["ranked"]]


def test_candidates_come_by_their_rate(popular, rates):
    answer = popular.post("/v1/rank", json=REQUEST | {"id": "r1"})
    assert answer.status_code == 200
    content = answer.json()
    assert items(content) == sorted(REQUEST["candidates"], key=lambda item: -rates[item])
    assert items(content) != REQUEST["candidates"]
    assert [entry["score"] for entry in content["ranked"]] == [None] * 5
    assert (content["state"], content["request_id"], content["model_version"]) == ("fallback", "r1", "first")
    assert "variant" not in content and list(content["took_ms"]) == ["decode", "respond"]


def test_the_best_of_them_where_so_many_are_asked_for(popular, rates):
    best = sorted(REQUEST["candidates"], key=lambda item: -rates[item])[:2]
    assert items(popular.post("/v1/rank", json=REQUEST | {"top_k": 2}).json()) == best


def test_a_counter_that_the_request_brings_goes_before(popular, rates):
    given = [{"item": item, "item_rate": i / 10} for i, item in enumerate(REQUEST["candidates"])]
    assert items(popular.post("/v1/rank", json=REQUEST | {"candidates": given}).json()) == [114, 113, 112, 111, 110]
    some = [110, {"item": 111, "item_rate": 1.0}, 112]
    answer = popular.post("/v1/rank", json=REQUEST | {"candidates": some}).json()
    assert items(answer) == [111, *sorted((110, 112), key=lambda item: -rates[item])]


def test_fresher_counters_say_what_is_popular(bundles, without_scores):
    client, server = client_of(bundles)
    with client:
        ranker = server.versions.current
        fresh = ranker.counters.items["item_rate"].copy()
        rows = ranker.encoder.item_rows("candidates", (113, 111))
        fresh[rows] = 0.99, 0.98
        ranker.counters = type(ranker.counters)({**ranker.counters.items, "item_rate": fresh})
        assert items(client.post("/v1/rank", json=REQUEST).json())[:2] == [113, 111]


def test_the_order_of_the_request_where_no_item_is_counted(bundles, without_scores):
    client, server = client_of(bundles)
    with client:
        contract = server.versions.current.encoder.contract
        users = {name: counter for name, counter in contract.counters.items() if counter.of == "user"}
        object.__setattr__(server.versions.current.encoder, "contract", contract.model_copy(update={"counters": users}))
        assert items(client.post("/v1/rank", json={"candidates": [114, 110, 112]}).json()) == [114, 110, 112]


def test_a_count_where_there_is_no_rate(bundles, without_scores):
    client, server = client_of(bundles)
    with client:
        encoder = server.versions.current.encoder
        contract = encoder.contract
        counts = {name: counter for name, counter in contract.counters.items() if name != "item_rate"}
        object.__setattr__(encoder, "contract", contract.model_copy(update={"counters": counts}))
        given = [{"item": 114, "item_count": 3}, {"item": 110, "item_count": 9}, {"item": 112, "item_count": 5}]
        assert items(client.post("/v1/rank", json={"candidates": given}).json()) == [110, 112, 114]


def test_a_rate_of_a_further_label_is_no_popularity(bundles, without_scores, rates):
    client, server = client_of(bundles)
    with client:
        encoder = server.versions.current.encoder
        counters = encoder.contract.counters
        bought = {"bought_rate": counters["item_rate"].model_copy(update={"label": "bought"}), **counters}
        object.__setattr__(encoder, "contract", encoder.contract.model_copy(update={"counters": bought}))
        answer = client.post("/v1/rank", json={"candidates": REQUEST["candidates"]}).json()
        assert items(answer) == sorted(REQUEST["candidates"], key=lambda item: -rates[item])


def reasons(client: TestClient) -> dict[str, float]:
    lines = [line for line in client.get("/metrics").text.splitlines() if line.startswith("quadrank_fallbacks_total{")]
    return {line.split('"')[1]: float(line.rsplit(" ", 1)[1]) for line in lines}


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (NumericalError("nan"), "no_score"),
        (RuntimeError("r"), "error"),
        (KeyError("k"), "error"),
        (MemoryError(), "error"),
    ],
)
def test_the_reason_is_counted(bundles, monkeypatch, error, reason):
    client, server = client_of(bundles)
    with client:
        monkeypatch.setattr(server.versions.current, "scores", broken(error))
        assert client.post("/v1/rank", json=REQUEST).json()["state"] == "fallback"
        assert reasons(client) == {reason: 1.0}
        text = client.get("/metrics").text
        assert (
            'quadrank_requests_total{route="rank",status="200"} 1.0' in text and "quadrank_candidates_total 0" in text
        )


def test_a_full_queue(bundles, monkeypatch):
    client, server = client_of(bundles)
    with client:
        monkeypatch.setattr(server.ranking.pool, "_taken", 10**6)
        assert client.post("/v1/rank", json=REQUEST).json()["state"] == "fallback"
        assert reasons(client) == {"full": 1.0} and "quadrank_shed_total{" not in client.get("/metrics").text


def test_where_popularity_has_no_place_either_the_server_is_busy(bundles, monkeypatch):
    client, server = client_of(bundles)
    with client:
        for pool in (server.ranking.pool, server.ranking._popular):
            monkeypatch.setattr(pool, "_taken", 10**6)
        assert client.post("/v1/rank", json=REQUEST).status_code == 503
        assert reasons(client) == {}


def test_a_model_that_takes_too_long_is_not_waited_for(bundles, monkeypatch):
    client, server = client_of(bundles, queue=QueueSettings(deadline_ms=200))
    end, scores = threading.Event(), server.versions.current.scores

    def slow(encoded: Any) -> np.ndarray:
        end.wait(60)
        return scores(encoded)

    with client:
        monkeypatch.setattr(server.versions.current, "scores", slow)
        assert client.post("/v1/rank", json=REQUEST).json()["state"] == "fallback"
        assert not end.is_set() and server.ranking.pool.taken == 1
        end.set()
        latest = time.monotonic() + 60
        while server.ranking.pool.taken:
            assert time.monotonic() < latest
            time.sleep(0.005)
        assert reasons(client) == {"late": 1.0}


@pytest.mark.parametrize(
    "body",
    [b"{", b'{"candidates": []}', b'{"candidates": [-1]}', b'{"candidates": ["text"]}', b'{"candidates": [1], "x": 1}'],
)
@pytest.mark.parametrize("taken", [0, 10**6])
def test_an_illegal_request_is_still_one(bundles, monkeypatch, body, taken):
    client, server = client_of(bundles)
    with client:
        monkeypatch.setattr(server.ranking.pool, "_taken", taken)
        assert client.post("/v1/rank", content=body).status_code == 400
        assert reasons(client) == {}


def test_a_server_that_stops_sends_clients_elsewhere(bundles, monkeypatch):
    client, server = client_of(bundles)
    with client:
        monkeypatch.setattr(server.ranking.pool, "_stopping", True)
        assert client.post("/v1/rank", json=REQUEST).status_code == 503


def test_without_fallback_a_fault_is_a_fault(bundles, monkeypatch):
    client, server = client_of(bundles, fallback=False)
    with client:
        for error in (KeyError("k"), NumericalError("nan")):
            monkeypatch.setattr(server.versions.current, "scores", broken(error))
            assert client.post("/v1/rank", json=REQUEST).status_code == 500


def test_what_popularity_answers_is_not_in_the_log(bundles, without_scores, tmp_path):
    folder = shutil.copytree(bundles, tmp_path / "shop")
    with client_of(folder, log=LogSettings(folder=tmp_path / "served"))[0] as client:
        assert client.post("/v1/rank", json=REQUEST).json()["state"] == "fallback"
    assert list((tmp_path / "served").iterdir()) == []
