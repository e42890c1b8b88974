"""`POST /v1/items`: new items are known from one request to the next, and stay so after a restart."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from ctr.config import ModelConfig
from ctr.serving.answering.versions import PointerSource, Source
from ctr.serving.bundle import ITEMS, open_bundle
from ctr.serving.items.new_items import items_of_json
from ctr.serving.items.upsert import upsert_items
from ctr.serving.ranker import Ranker
from ctr.serving.server.app import Server
from ctr.serving.settings import ItemSettings
from features.store.pointer import point_at
from tests.ctr.serving.shop import REQUEST, export, serve_config
from tests.trained import built_feature_set, random_model

TOKEN = "a secret"
ALLOWED = {"authorization": f"Bearer {TOKEN}"}
VECTOR = [0.1, -0.2, 0.3, 0.4, 0.0, 1.5, -1.0, 0.25]
ITEM: dict[str, Any] = {
    "item": 900,
    "columns": {"genre": "drama", "tags": ["new", "loud"], "price": 9.5},
    "vectors": {"text": VECTOR},
}
ASKED = REQUEST | {"candidates": [110, 900, 901]}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("server")
    feature_set = built_feature_set(folder)
    model = random_model(feature_set, ModelConfig(embedding_dim=4, attention_dim=4))
    return export(model, feature_set, folder / "bundles" / "first", version="first").path


@pytest.fixture
def shop(exported: Path, tmp_path: Path) -> Path:
    """The bundle in a folder of its own, and a pointer to it."""
    shutil.copytree(exported, tmp_path / "shop" / "first")
    point_at(tmp_path / "shop", "first")
    return tmp_path / "shop"


def client_of(source: Source, token: str | None = TOKEN, **config: Any) -> tuple[TestClient, Server]:
    server = Server(source, serve_config(**config), token)
    return TestClient(server.app()), server


def post(client: TestClient, *items: dict[str, Any], **headers: str) -> Any:
    return client.post("/v1/items", json={"items": list(items)}, headers=ALLOWED | headers)


def test_a_new_item_is_known_from_the_next_request_on(shop):
    client, _ = client_of(PointerSource(shop / "CURRENT"))
    with client:
        before = client.post("/v1/rank", json=ASKED).json()
        answer = post(client, ITEM)
        assert answer.status_code == 200
        counts = {"new": 1, "changed": 0, "upserted": 1}
        assert answer.json() == {"model_version": "first+items.1", **counts, "kept": True}
        after = client.post("/v1/rank", json=ASKED).json()
    assert (before["model_version"], before["unknown"]["candidates"]) == ("first", 2)
    assert (after["model_version"], after["unknown"]["candidates"]) == ("first+items.1", 1)
    scores = [{one["item"]: one["score"] for one in ranked["ranked"]} for ranked in (before, after)]
    assert scores[0][110] == scores[1][110] and scores[0][901] == scores[1][901]
    assert scores[0][900] == scores[0][901] != scores[1][900]


def test_the_document_describes_the_routes_that_write(shop):
    with client_of(PointerSource(shop / "CURRENT"))[0] as client:
        paths = client.get("/openapi.json").json()["paths"]
        answers = {"/v1/items": post(client, ITEM).json()}
        answers["/v1/rollback"] = client.post("/v1/rollback", headers=ALLOWED).json()
        for path, answer in answers.items():
            described = paths[path]["post"]["responses"]
            assert set(answer) == set(described["200"]["content"]["application/json"]["schema"]["properties"])
            assert {"400", "401", "404"} <= set(described)
        served = {route.path for route in client.app.routes if route.path.startswith("/v1/")}
        assert served == {path for path in paths if path.startswith("/v1/")}


def test_the_version_is_that_of_the_command(shop, tmp_path):
    client, _ = client_of(PointerSource(shop / "CURRENT"))
    with client:
        post(client, ITEM)
        served = {one["item"]: one["score"] for one in client.post("/v1/rank", json=ASKED).json()["ranked"]}
    made = upsert_items(shop / "first", lambda one: items_of_json(one, {"items": [ITEM]}, 1), tmp_path / "own")
    assert served == {one.item: one.score for one in Ranker.load(made.path).rank(ASKED).ranked}


def test_a_restart_and_other_servers_find_it_by_the_pointer(shop):
    with client_of(PointerSource(shop / "CURRENT"))[0] as client:
        post(client, ITEM)
        post(client, {"item": 901})
    assert (shop / "CURRENT").read_text() == "first+items.2"
    with client_of(PointerSource(shop / "CURRENT"))[0] as client:
        answer = client.post("/v1/rank", json=ASKED).json()
    assert (answer["model_version"], answer["unknown"]["candidates"]) == ("first+items.2", 0)


def test_of_a_folder_it_answers_until_the_server_ends(shop):
    client, server = client_of(PointerSource(shop / "first"))
    with client:
        assert post(client, ITEM).json()["kept"] is False
        assert post(client, {"item": 901}).json()["model_version"] == "first+items.2"
        assert not server.versions.refresh()
        assert client.post("/v1/rank", json=ASKED).json()["unknown"]["candidates"] == 0
    assert (shop / "CURRENT").read_text() == "first"


def test_a_rollback_takes_the_items_back(shop):
    client, server = client_of(PointerSource(shop / "CURRENT"))
    with client:
        post(client, ITEM)
        assert client.post("/v1/rollback", headers=ALLOWED).json() == {"model_version": "first"}
        assert not server.versions.refresh()
        # From the version that answers now; the pointer names the one that was left, and stays.
        again = post(client, {"item": 901}).json()
        assert (again["model_version"], again["upserted"], again["kept"]) == ("first+items.2", 1, False)
        assert not server.versions.refresh()
        assert client.post("/v1/rank", json=ASKED).json()["model_version"] == "first+items.2"
    assert (shop / "CURRENT").read_text() == "first+items.1"


def test_the_route_needs_the_token_and_does_not_exist_without_one(shop):
    with client_of(PointerSource(shop / "CURRENT"), token=None)[0] as client:
        assert post(client, ITEM).status_code == 404
    with client_of(PointerSource(shop / "CURRENT"))[0] as client:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": TOKEN + "x"}):
            answer = client.post("/v1/items", json={"items": [ITEM]}, headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "unauthorized")
    assert sorted(path.name for path in shop.iterdir()) == ["CURRENT", "first"]


def item(**changes: Any) -> dict[str, Any]:
    return {"items": [ITEM | changes]}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ([ITEM], "expected a JSON object"),
        ({}, "items: expected a list of items"),
        ({"items": []}, "items: expected a list of items"),
        ({"items": [900]}, r"items[0]: expected an object with `item`"),
        ({"items": [ITEM], "bundle": "x"}, "body: unknown key 'bundle'"),
        (item(vector=VECTOR), "items[0]: unknown key 'vector'. Did you mean 'vectors'"),
        ({"items": [ITEM, {"item": 901}, {"item": 902}, {"item": 903}]}, "items: 4 entries, at most 3 are allowed"),
        (item(item=-1), "items[0].item: -1 cannot be an id"),
        (item(item=1.5), "items[0].item: 1.5 cannot be an id"),
        (item(item=True), "items[0].item: True cannot be an id"),
        (item(item=2**63), "cannot be an id"),
        (item(item="900"), "items: ids are String (e.g. '900'), those of the log are whole numbers"),
        ({"items": [ITEM, {"item": "x"}]}, "items: ids are text and whole numbers, e.g. 'x'"),
        ({"items": [ITEM, ITEM]}, "items: 1 ids appear more than once, e.g. 900"),
        (item(columns={"gener": "drama"}), "items[0].columns: unknown key 'gener'. Did you mean 'genre'"),
        (item(columns=["drama"]), "items[0].columns: expected an object, got list"),
        (item(columns={"price": "9"}), "items[0].columns.price: expected a finite number, got '9'"),
        (item(columns={"genre": 3}), "items[0].columns.genre: 3 is of the wrong type"),
        (item(columns={"genre": [3]}), "items[0].columns.genre: expected text or a whole number"),
        (item(columns={"tags": "new"}), "items[0].columns.tags: tags are a list, got 'new'"),
        (item(vectors={"image": VECTOR}), "items[0].vectors: unknown key 'image'"),
        (item(vectors={"text": []}), "items[0].vectors.text: expected a list of finite numbers"),
        (item(vectors={"text": [1e39] * 8}), "items[0].vectors.text: expected a list of finite numbers"),
        (item(vectors={"text": [10**400] * 8}), "items[0].vectors.text: expected a list of finite numbers"),
        (item(vectors={"text": [None] * 8}), "items[0].vectors.text: expected a list of finite numbers"),
        (item(vectors={"text": [True] * 8}), "items[0].vectors.text: expected a list of finite numbers"),
        (item(vectors={"text": VECTOR[:7]}), "set 'text' is 7 wide, not 8"),
        (
            {"items": [ITEM, {"item": 901, "vectors": {"text": VECTOR[:7]}}]},
            "items[1].vectors.text: 7 numbers, others have 8",
        ),
    ],
)
def test_wrong_items_are_refused_with_the_reason(server_of_all, body, message):
    client, shop = server_of_all
    answer = client.post("/v1/items", json=body, headers=ALLOWED)
    assert answer.status_code == 400, answer.text
    assert message in answer.json()["error"]["message"] and str(shop) not in answer.text
    assert sorted(path.name for path in shop.iterdir()) == ["CURRENT", "first"]


@pytest.fixture(scope="module")
def server_of_all(exported, tmp_path_factory):
    shop = tmp_path_factory.mktemp("refused")
    shutil.copytree(exported, shop / "first")
    point_at(shop, "first")
    items = ItemSettings(max_items=3, max_body_kib=40)
    with client_of(PointerSource(shop / "CURRENT"), items=items, max_body_kib=1)[0] as client:
        yield client, shop


def test_bodies_have_a_limit_of_their_own(server_of_all):
    client, _ = server_of_all
    large = {"item": 900, "columns": {"tags": ["x" * 2000] * 10}}
    assert post(client, large | {"item": "x"}).status_code == 400
    answer = post(client, large | {"columns": {"tags": ["x" * 2000] * 30}})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")
    assert "larger than 40 KiB" in answer.json()["error"]["message"]


def test_an_item_may_come_without_columns_and_vector(shop):
    with client_of(PointerSource(shop / "CURRENT"))[0] as client:
        assert post(client, {"item": 901, "columns": None, "vectors": {"text": None}}).status_code == 200
        ranked = client.post("/v1/rank", json=ASKED).json()["ranked"]
    scores = {one["item"]: one["score"] for one in ranked}
    # An item of which nothing is known is an unknown item.
    assert scores[901] == pytest.approx(scores[900], abs=1e-7)


def test_requests_are_answered_while_versions_are_made(shop):
    """One version after the other, each with all items before it; no answer but 200."""
    with client_of(PointerSource(shop / "CURRENT"))[0] as client, ThreadPoolExecutor(3) as pool:
        posts = [pool.submit(post, client, ITEM | {"item": 900 + i}) for i in range(3)]
        answered = 0
        while not all(one.done() for one in posts):
            assert client.post("/v1/rank", json=REQUEST).status_code == 200
            answered += 1
        answers = [one.result().json() for one in posts]
        assert answered > 0
    assert sorted(one["upserted"] for one in answers) == [1, 2, 3]
    assert {one["model_version"] for one in answers} == {f"first+items.{i}" for i in (1, 2, 3)}
    assert open_bundle(shop).manifest.model_version == "first+items.3"


def test_too_many_at_once_are_refused(shop):
    client, _ = client_of(PointerSource(shop / "CURRENT"), items=ItemSettings(waiting=1))
    with client, ThreadPoolExecutor(4) as pool:
        statuses = [one.status_code for one in pool.map(lambda i: post(client, ITEM | {"item": 900 + i}), range(4))]
    assert statuses.count(503) == 2 and statuses.count(200) == 2


def test_a_version_that_fails_its_checks_answers_never(shop):
    client, _ = client_of(PointerSource(shop / "CURRENT"))
    with client:
        (shop / "first" / ITEMS).write_bytes(b"no graph")
        answer = post(client, ITEM)
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal")
        assert client.post("/v1/rank", json=ASKED).json()["model_version"] == "first"
    assert sorted(path.name for path in shop.iterdir()) == ["CURRENT", "first"]


def test_events_of_new_items_are_counted(shop):
    """Reported before the item is known or after, they reach its counters; a changed item keeps what it had."""
    client, server = client_of(PointerSource(shop / "CURRENT"))
    times = [10**6 + 3600 * i for i in range(3)]

    def seen(item: int) -> float:
        row = server.versions.current.encoder.items.index(item)
        return float(server.versions.current.counters.items["item_count"][row])

    def report(item: int, time: int) -> None:
        event = {"user": "u3", "item": item, "time": time, "clicked": 1, "device": "desk", "load": 1.0}
        answer = client.post("/v1/events", json={"events": [event]}, headers=ALLOWED)
        assert answer.json()["taken"] == 1, answer.text
        server.live.fold()

    with client:
        before = seen(110)
        report(900, times[0])
        report(110, times[0])
        post(client, ITEM, {"item": 110, "columns": {"genre": "crime"}})
        report(900, times[1])
        report(110, times[1])
        report(110, times[2])
        assert (seen(900), seen(110)) == (2, before + 3)
        assert client.post("/v1/rank", json=ASKED).json()["unknown"]["candidates"] == 1
