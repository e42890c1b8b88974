"""Every route that takes a POST against mutated bodies and headers, with the token and without."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from starlette.routing import Route

from ctr.serving.answering.versions import PointerSource
from ctr.serving.ranker import graph_inputs
from ctr.serving.server.app import Server
from ctr.serving.server.openapi import DOCUMENT
from features.encoding.request import parse_request
from tests.ctr.serving.server.mutations import Call, asked, mutated
from tests.ctr.serving.shop import REQUEST, serve_config

TOKEN = "a secret"
HEADERS: dict[bytes, list[bytes]] = {
    b"authorization": [b"", b"Bearer", b"Bearer \xff\xfe", b"a secret", b"Basic YTpi", b"Bearer " + b"x" * 10_000],
    b"inference-header-content-length": [
        b"\xb2",
        b"9" * 5000,
        b"9" * 9,
        b"-1",
        b"",
        b"0",
        b"2",
        b"100",
        b"1e3",
        b"0x9",
    ],
    b"content-length": [b"\xb2", b"9" * 5000, b"9" * 12, b"-1", b"", b"0", b"x"],
    b"content-type": [b"", b"\xff", b"text/plain; charset=\xff", b"application/json; charset=utf-16"],
    b"accept-encoding": [b"\x00", b"gzip"],
}


@pytest.fixture
def server(bundles: Path, tmp_path: Path) -> Server:
    shop = shutil.copytree(bundles, tmp_path / "shop")
    return Server(PointerSource(shop / "CURRENT"), serve_config(), TOKEN)


def bodies_of(server: Server) -> dict[str, Any]:
    """A sound body of each route that takes a POST, by the route's path."""
    ranker = server.versions.current
    feed = graph_inputs(ranker.encode(parse_request(REQUEST, ranker.encoder.contract)))
    tensors = [
        {
            "name": node.name,
            "shape": list(feed[node.name].shape),
            "datatype": "FP32" if feed[node.name].dtype.kind == "f" else "INT64",
            "data": [None if x != x else x for x in feed[node.name].ravel().tolist()],
        }
        for node in ranker.inputs
    ]
    encoded = {"id": "7", "inputs": tensors, "outputs": [{"name": "score", "parameters": {"binary_data": True}}]}
    event = {"user": "u3", "item": 110, "time": int(time.time()), "clicked": 1}
    item = {"item": 900, "columns": {"genre": "drama", "tags": ["new"], "price": 9.5}, "vectors": {"text": [0.5] * 8}}
    return {
        "/v1/rank": REQUEST,
        "/v1/events": {"events": [event, event | {"item": 111}]},
        "/v1/items": {"items": [item]},
        "/v1/rollback": {"passed": "over"},
        "/v2/models/{name}/infer": encoded,
        "/v2/models/{name}/versions/{version}/infer": encoded,
    }


def call_of(draw: random.Random, server: Server, route: str, body: Any) -> Call:
    """A call of a route: its body mutated in three of four, one of its headers in every second."""
    headers = {b"authorization": f"Bearer {TOKEN}".encode()}
    if draw.random() < 0.5:
        name = draw.choice(list(HEADERS))
        headers[name] = draw.choice(HEADERS[name])
    ranker = server.versions.current
    path = route.format(name=ranker.bundle.manifest.name, version=ranker.model_version)
    return Call(mutated(draw, body) if draw.random() < 0.75 else json.dumps(body).encode(), path, headers)


def fuzz(server: Server, each: dict[str, int], seed: int) -> dict[str, Counter[int]]:
    """How many of so many calls of each route got each status; those of a 5xx are shown."""
    draw, app, bodies = random.Random(seed), server.app(), bodies_of(server)
    calls = [route for route, number in each.items() for _ in range(number)]
    draw.shuffle(calls)
    found = {route: Counter[int]() for route in each}
    for route in calls:
        call = call_of(draw, server, route, bodies[route])
        ((status, answer),) = asked(app, [call])
        found[route][status] += 1
        assert status < 500, (call, answer)
        if status != 200:
            error = json.loads(answer)["error"]
            assert error if route.startswith("/v2") else error["message"]
    return found


def test_each_route_that_takes_a_post_is_among_them(server):
    routes = {one.path for one in server.app().routes if isinstance(one, Route) and "POST" in (one.methods or ())}
    assert set(bodies_of(server)) == routes


def test_the_document_describes_each_route(server):
    """But itself and its page."""
    served = {
        (one.path, method.lower())
        for one in server.app().routes
        if isinstance(one, Route)
        for method in (one.methods or set()) - {"HEAD"}
    }
    described = {
        (path, method) for path, methods in DOCUMENT["paths"].items() for method in {*methods} - {"parameters"}
    }
    assert described == served - {("/docs", "get"), ("/openapi.json", "get")}


def test_mutated_bodies_and_headers_are_answered_or_refused(server):
    each = dict.fromkeys(bodies_of(server), 60) | {"/v1/items": 12, "/v1/rollback": 12}
    found = fuzz(server, each, seed=1)
    assert all(statuses[200] and statuses[400] for route, statuses in found.items() if route != "/v1/rollback"), found
    assert {status for statuses in found.values() for status in statuses} <= {200, 400, 401, 404, 413}
    assert server.ranking.pool.taken == 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_many_mutated_bodies_and_headers_are_answered_or_refused(server):
    each = dict.fromkeys(bodies_of(server), 10_000) | {"/v1/items": 1000, "/v1/rollback": 100}
    found = fuzz(server, each, seed=2)
    assert {status for statuses in found.values() for status in statuses} <= {200, 400, 401, 404, 413}, found
