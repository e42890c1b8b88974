"""What a request lacks, what the model never saw of it, and times that cannot be: answered, counted, refused."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from starlette.testclient import TestClient

from tests.ctr.serving.shop import REQUEST, client_of


@pytest.fixture
def client(bundles: Path) -> Iterator[TestClient]:
    with client_of(bundles)[0] as client:
        yield client


def test_unknown_users_and_values_are_counted_by_column(client):
    def counted() -> dict[str, float]:
        lines = client.get("/metrics").text.splitlines()
        found = (
            line.removeprefix('quadrank_unknown_total{of="').split('"} ') for line in lines if "unknown_total{" in line
        )
        return {of: float(value) for of, value in found}

    assert client.post("/v1/rank", json=REQUEST).status_code == 200
    assert counted() == {}
    strange = REQUEST | {
        "user": "nobody",
        "context": {"device": "toaster", "load": 2.5},
        "user_columns": {"segment": "?"},
    }
    strange |= {"candidates": [110, 990, 991], "history": [{"item": 992, "label": 1}, {"item": 101, "label": 7}]}
    assert client.post("/v1/rank", json=strange).status_code == 200
    assert counted() == {
        **{"candidates": 2, "history": 1, "user": 1, "context.device": 1, "user_columns.segment": 1, "history.label": 1}
    }
    # What is missing is not unknown.
    lacking = {"user": None, "context": {"device": None}, "history": [{"item": 101}], "candidates": [110]}
    assert client.post("/v1/rank", json=lacking).json()["missing"]["label"] == 1
    assert sum(counted().values()) == 7


def test_a_request_without_a_user_or_a_past_says_so_and_strict_refuses_it(bundles):
    client, server = client_of(bundles)
    whole = {"user": None, "context": {"device": "tv", "load": 1.0}, "history": [], "candidates": [110]}
    without = {key: value for key, value in whole.items() if key not in ("user", "history")}
    assert client.post("/v1/rank", json=without).json()["missing"] == {"user": 1, "history": 1}
    assert client.post("/v1/rank", json=whole).json()["missing"] == {}  # said to be none
    named = {key: value for key, value in whole.items() if key != "history"} | {"user": "u3"}
    assert client.post("/v1/rank", json=named).json()["missing"] == {"history": 1}
    server.versions.current.pasts = SimpleNamespace(newest=lambda user: [])  # a source that knows nothing of the user
    assert client.post("/v1/rank", json=named).json()["missing"] == {}
    assert client.post("/v1/rank", json=without).json()["missing"] == {"user": 1, "history": 1}
    strict, _ = client_of(bundles, strict=True)
    refused = strict.post("/v1/rank", json=without)
    assert refused.status_code == 400
    assert refused.json()["error"]["message"].startswith("missing: user (1), history (1).")
    assert strict.post("/v1/rank", json=whole).status_code == 200


def test_a_time_of_exactly_a_day_from_now_is_the_first_that_is_refused(client, monkeypatch):
    monkeypatch.setattr(time, "time_ns", lambda: 1_800_000_000 * 10**9)
    times = (1_800_086_399, 1_800_086_400)
    assert [client.post("/v1/rank", json=REQUEST | {"time": one}).status_code for one in times] == [200, 400]


def test_a_time_beyond_a_day_from_now_is_refused(client):
    now = int(time.time())
    assert client.post("/v1/rank", json=REQUEST | {"time": now + 86_000}).status_code == 200
    refused = client.post("/v1/rank", json=REQUEST | {"time": now + 87_000})
    assert (refused.status_code, refused.json()["error"]["message"][:5]) == (400, "time:")
    far = client.post("/v1/rank", json=REQUEST | {"time": 7_258_118_400}).json()["error"]["message"]
    assert far.startswith("time: 7258118400 is 2200-01-01") and "leave `time` out for now" in far
