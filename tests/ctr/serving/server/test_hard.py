"""The server against what no sane client sends: each case by name, mutated requests, our own document's schema."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from ctr.serving.answering.versions import PointerSource
from ctr.serving.server.app import Server
from ctr.serving.server.openapi import DOCUMENT
from features.encoding.request import Limits
from tests.ctr.serving.server.mutations import Call, asked, mutated
from tests.ctr.serving.server.over_http import exchange, post, serving
from tests.ctr.serving.shop import REQUEST, serve_config


@pytest.fixture(scope="module")
def server(bundles: Path) -> Server:
    return Server(PointerSource(bundles / "CURRENT"), serve_config(limits=Limits(max_candidates=50, max_history=50)))


@pytest.fixture(scope="module")
def port(server: Server) -> Iterator[int]:
    with serving(server) as port:
        yield port


def with_value(key: str, text: str) -> bytes:
    """The request with this JSON text for a key."""
    return json.dumps(REQUEST | {key: "HERE"}).replace('"HERE"', text).encode()


DEEP = "[" * 50_000 + "]" * 50_000
NAMED: dict[str, tuple[bytes, int]] = {
    "a candidate -1": (with_value("candidates", "[-1]"), 400),
    "a candidate 1.7": (with_value("candidates", "[1.7]"), 400),
    "a candidate 2^63": (with_value("candidates", str([2**63])), 400),
    "a candidate 2^63 - 1": (with_value("candidates", str([2**63 - 1])), 200),
    "a candidate 10^400": (with_value("candidates", f"[1{'0' * 400}]"), 400),
    "a candidate NaN": (with_value("candidates", "[NaN]"), 400),
    "a candidate Infinity": (with_value("candidates", "[Infinity]"), 400),
    "a candidate 1e999": (with_value("candidates", "[1e999]"), 400),
    "a candidate null": (with_value("candidates", "[null]"), 400),
    "a candidate true": (with_value("candidates", "[true]"), 400),
    "history -1": (with_value("history", "[-1]"), 400),
    "history 1.7": (with_value("history", "[1.7]"), 400),
    "history 2^63": (with_value("history", str([2**63])), 400),
    "a context number NaN": (with_value("context", '{"load": NaN}'), 400),
    "a context number 1e308": (with_value("context", '{"load": 1e308}'), 200),
    "a context number 10^400": (with_value("context", '{"load": 1' + "0" * 400 + "}"), 400),
    "an event number of 10^38": (
        with_value("history", '[{"item": 101, "residual": 1e38}]'),
        200,
    ),  # readers bound what they say
    "an event number of 10^308": (with_value("history", '[{"item": 101, "residual": 1e308}]'), 200),  # as a missing one
    "time 2^63": (with_value("time", str(2**63)), 400),
    "time -2^63": (with_value("time", str(-(2**63))), 400),
    "no candidates": (with_value("candidates", "[]"), 400),
    "one candidate more than the limit": (with_value("candidates", str(list(range(100, 151)))), 400),
    "as many candidates as the limit": (with_value("candidates", str(list(range(100, 150)))), 200),
    "more history than the limit": (with_value("history", str([101] * 51)), 400),
    "deep nesting": (DEEP.encode(), 400),
    "deep nesting of a candidate": (with_value("candidates", DEEP), 400),
    "deep nesting of a context column": (with_value("context", '{"device": ' + DEEP + "}"), 400),
    "deep nesting of an event column": (with_value("history", '[{"item": 101, "label": ' + DEEP + "}]"), 400),
    "the same candidate twice": (with_value("candidates", "[110, 110]"), 200),
    "a key twice: the last one counts": (b'{"candidates": [], "candidates": [110]}', 200),
    "a key of an item twice": (b'{"candidates": [{"item": -1, "item": 110}]}', 200),
    "a lone surrogate as the user": (with_value("user", '"\\ud800"'), 400),
    "a lone surrogate as the id": (with_value("id", '"\\udfff"'), 400),
    "a lone surrogate as a key": (b'{"candidates": [110], "\\ud800": 1}', 400),
    "surrogates in UTF-8": (b'{"candidates": [110], "user": "' + b"\xed\xa0\x80" + b'"}', 400),
    "a pair of surrogates": (with_value("user", '"\\ud83d\\ude00"'), 200),
    "a NUL in the user": (with_value("user", '"\\u0000"'), 200),
    "an empty body": (b"", 400),
    "a body of spaces": (b" " * 100_000, 400),
    "UTF-16": (json.dumps(REQUEST).encode("utf-16"), 400),
}


@pytest.mark.parametrize("name", NAMED)
def test_each_by_name(port, name):
    body, expected = NAMED[name]
    status, answer = post(port, body)
    assert status == expected, answer[:500]
    assert post(port, json.dumps(REQUEST).encode())[0] == 200, "it answers the next one"


def test_50_mb_are_refused_before_they_are_read(port):
    status, _ = post(port, b" " * 100, length=50_000_000)
    assert status == 413


def test_50_mb_that_say_to_be_less_are_cut(port):
    status, _ = post(port, b" " * 50_000_000, length=100)
    assert status == 400  # 100 spaces


def test_a_body_that_ends_too_early_gets_no_answer_and_takes_no_place(port, server):
    assert post(port, json.dumps(REQUEST).encode()[:40], length=500, end=True)[0] == 0
    assert post(port, json.dumps(REQUEST).encode())[0] == 200 and server.ranking.pool.taken == 0


def test_a_body_whose_rest_does_not_come_is_answered_408_and_its_connection_closed(bundles):
    server = Server(PointerSource(bundles / "CURRENT"), serve_config(receive_seconds=0.2))
    with serving(server) as port:
        head = "POST /v1/rank HTTP/1.1\nhost: x\ncontent-length: 500\n\n"
        status, whole = exchange(port, head.encode(), b'{"cand')
        assert (status, json.loads(whole.partition(b"\r\n\r\n")[2])["error"]["code"]) == (408, "slow")
        assert b"connection: close" in whole.lower(), "not only once it has been idle"
        assert post(port, json.dumps(REQUEST).encode())[0] == 200
    assert server.ranking.pool.taken == 0


def test_a_body_longer_than_it_says_is_read_to_where_it_says(port):
    body = json.dumps(REQUEST).encode()
    assert post(port, body + b"}}}}", length=len(body))[0] == 200
    assert post(port, body, length=len(body) - 1)[0] == 400


@pytest.mark.parametrize("length", ["-1", "x", "1.5", "9" * 30, "0x10"])
def test_a_content_length_that_is_none_is_refused(port, length):
    assert post(port, b"{}", length=length)[0] == 400


def fuzz(server: Server, requests: int, seed: int) -> dict[int, int]:
    """How many mutated requests got each status; those of a 5xx are shown."""
    draw, found = random.Random(seed), dict[int, int]()
    app = server.app()
    for _ in range(0, requests, 500):
        bodies = [mutated(draw, REQUEST) for _ in range(min(500, requests))]
        for body, (status, answer) in zip(bodies, asked(app, list(map(Call, bodies))), strict=True):
            found[status] = found.get(status, 0) + 1
            assert status < 500, (body, answer)
            content = json.loads(answer)
            assert content["ranked"] if status == 200 else content["error"]["message"]
    return found


def test_mutated_requests_are_ranked_or_refused(server):
    found = fuzz(server, 1000, seed=1)
    assert set(found) == {200, 400} and min(found.values()) > 70, found


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_hundred_thousand_mutated_requests_are_ranked_or_refused(server):
    found = fuzz(server, 100_000, seed=2)
    assert set(found) == {200, 400} and min(found.values()) > 7_000, found


def of_the_document(server: Server, examples: int, positive: bool) -> dict[int, int]:
    """How many requests that schemathesis makes of our own document got each status."""
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    app, found = server.app(), dict[int, int]()
    # Not of the app: to ask it, schemathesis would start and stop the server.
    mode = schemathesis.GenerationMode.POSITIVE if positive else schemathesis.GenerationMode.NEGATIVE
    operation = schemathesis.openapi.from_dict(DOCUMENT)["/v1/rank"]["POST"]

    @given(operation.as_strategy(generation_mode=mode))
    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    def each(case: Any) -> None:
        body = case.body if isinstance(case.body, bytes) else json.dumps(case.body, default=str).encode()
        ((status, answer),) = asked(app, [Call(body)])
        found[status] = found.get(status, 0) + 1
        assert status < 500, (body, answer)

    each()
    return found


@pytest.mark.parametrize("positive", [True, False])
def test_what_the_document_allows_and_forbids_is_ranked_or_refused(server, positive):
    assert set(of_the_document(server, 20, positive)) <= {200, 400}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("positive", [True, False])
def test_a_thousand_requests_of_the_document(server, positive):
    assert set(of_the_document(server, 1000, positive)) <= {200, 400}
