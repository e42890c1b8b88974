"""`POST /v1/events` and pasts over HTTP: who may, what is answered, what rankings and metrics show of it."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from ctr.serving.answering.answers import answer
from ctr.serving.answering.versions import PointerSource
from ctr.serving.pasts.source import AwayError
from ctr.serving.server.app import Server
from ctr.serving.settings import EventSettings, PastsSettings
from features.encoding.request import Limits
from features.encoding.snapshot import Snapshot
from features.errors import ConfigError
from features.store.pointer import point_at
from tests.ctr.serving.shop import REQUEST, serve_config

TOKEN = {"Authorization": "Bearer a secret"}
NOW = int(time.time())
EVENT: dict[str, Any] = {"user": "u3", "item": 110, "time": NOW, "clicked": 1}


def client_of(bundles: Path, token: str | None = "a secret", **config: Any) -> tuple[TestClient, Server]:
    config.setdefault("events", EventSettings(most=5, seconds=0.01))
    server = Server(PointerSource(bundles / "CURRENT"), serve_config(**config), token)
    return TestClient(server.app()), server


def post(client: TestClient, *events: Any) -> Any:
    return client.post("/v1/events", json={"events": list(events)}, headers=TOKEN)


def rated(snapshot: Snapshot, row: int) -> tuple[float, float]:
    """Rows of an item in the log, and the positive ones."""
    state = snapshot.states["item_rate"]
    newest = state.open_row == row  # those of the log's last microsecond
    return (
        float(state.count[row] + state.open_count[newest].sum()),
        float(state.total[row] + state.open_total[newest].sum()),
    )


def test_the_route_is_there_for_whoever_has_the_token(bundles: Path) -> None:
    with client_of(bundles, token=None)[0] as client:
        assert post(client, EVENT).status_code == 404
    with client_of(bundles)[0] as client:
        for headers in ({}, {"Authorization": "Bearer a secre"}, {"Authorization": "Basic a secret"}):
            refused = client.post("/v1/events", json={"events": [EVENT]}, headers=headers)
            assert (refused.status_code, refused.json()["error"]["code"]) == (401, "unauthorized")
        assert post(client, EVENT).status_code == 200


def test_the_answer_says_what_was_taken_and_why_the_first_was_refused(bundles: Path) -> None:
    with client_of(bundles)[0] as client:
        unlabelled = {"user": "u4", "item": 111, "time": NOW}
        answered = post(client, EVENT, EVENT, unlabelled, EVENT | {"item": -1}, EVENT | {"time": "?"}).json()
        reason = answered.pop("reason")
        assert answered == {"taken": 3, "refused": 2, "repeated": 1, "unlabelled": 1}
        assert reason.startswith("events[3]: item: -1 cannot be an id")
        assert post(client, EVENT | {"time": NOW + 1}).json() == {
            "taken": 1, "refused": 0, "repeated": 0, "unlabelled": 0
        }  # fmt: skip
        found = client.get("/metrics").text
        for outcome, number in {"taken": 4, "refused": 2, "repeated": 1, "unlabelled": 1}.items():
            assert f'quadrank_events_total{{outcome="{outcome}"}} {number}.0' in found


def test_size_and_number_are_bounded(bundles: Path) -> None:
    with client_of(bundles, max_body_kib=1)[0] as client:
        refused = post(client, *[EVENT] * 6)
        assert refused.status_code == 400 and "at most 5" in refused.json()["error"]["message"]
        assert post(client, EVENT | {"note": "x" * 2000}).status_code == 413


def test_rankings_read_counters_that_are_as_fresh_as_the_events(bundles: Path) -> None:
    client, server = client_of(bundles)
    with client:
        before = client.post("/v1/rank", json=REQUEST).json()["ranked"]
        ranker = server.versions.current
        row = ranker.encoder.items.index(110)
        snapshot = ranker.counters
        counted = float(snapshot.items["item_rate"][row])
        rows, positives = rated(snapshot, row)
        # The rate after n rows, p of them positive, with a prior of 10 rows: (p + 10 m) / (n + 10).
        assert counted == pytest.approx((positives + 10 * snapshot.mean) / (rows + 10))
        assert post(client, *[EVENT | {"time": NOW - 60 - i} for i in range(5)]).json()["taken"] == 5
        until = time.monotonic() + 30
        while ranker.counters is snapshot and time.monotonic() < until:
            time.sleep(0.01)
        fresher = float(ranker.counters.items["item_rate"][row])
        assert fresher == pytest.approx((positives + 5 + 10 * snapshot.mean) / (rows + 5 + 10))
        after = client.post("/v1/rank", json=REQUEST).json()["ranked"]
        assert {one["item"]: one["score"] for one in after}[110] != {one["item"]: one["score"] for one in before}[110]
        age = float(client.get("/metrics").text.split("\nquadrank_counters_age_seconds ")[1].split()[0])
        assert age == pytest.approx(time.time() - (NOW - 60), abs=10)


def test_a_past_that_was_reported_is_found_by_the_next_ranking(bundles: Path, tmp_path: Path) -> None:
    client, server = client_of(bundles, pasts=PastsSettings(kind="lmdb", folder=tmp_path / "pasts"))
    with client:
        assert post(client, EVENT, EVENT | {"item": 111, "time": NOW + 1, "clicked": 0}).status_code == 200
        body = b'{"user": "u3", "candidates": [101, 102]}'
        found = answer(server.versions.current, body, Limits())
        assert found.encoded.history == (110, 111) and "clicked" not in found.encoded.missing
        # The label less the item's rate: what was clicked stands above what was passed over.
        clicked, passed_over = found.encoded.history_events["residual"].tolist()
        assert clicked > 0 > passed_over
        assert answer(server.versions.current, b'{"candidates": [101, 102]}', Limits()).encoded.history == ()
        assert client.post("/v1/rank", content=b'{"user": "u9", "candidates": [101]}').status_code == 200
        text = client.get("/metrics").text
        assert 'quadrank_pasts_total{outcome="found"} 1.0' in text
        assert 'quadrank_pasts_total{outcome="absent"} 1.0' in text


def test_a_source_that_is_away_is_a_503_and_nothing_is_counted(bundles: Path, monkeypatch: Any) -> None:
    client, server = client_of(bundles)
    with client:
        ranker = server.versions.current

        def away(user: Any, events: Any) -> None:
            raise AwayError("no server")

        monkeypatch.setattr(type(ranker.pasts), "add", lambda self, user, events: away(user, events))
        refused = post(client, EVENT)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "pasts_away")
        assert refused.headers["Retry-After"] == "1" and "no server" not in refused.text
        monkeypatch.undo()
        assert post(client, EVENT).json()["repeated"] == 0


def test_redis_that_is_not_there_fails_no_ranking(bundles: Path) -> None:
    pasts = PastsSettings(kind="redis", url="redis://127.0.0.1:1/0", timeout_ms=200, pause_ms=60_000)
    with client_of(bundles, pasts=pasts)[0] as client:
        for _ in range(3):
            assert client.post("/v1/rank", json=REQUEST).status_code == 200
        assert 'quadrank_pasts_total{outcome="failed"} 3.0' in client.get("/metrics").text
        assert post(client, EVENT).status_code == 503


def test_a_bundle_without_the_pasts_that_are_wanted_does_not_answer(bundles: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="was exported without pasts"):
        client_of(bundles, pasts=PastsSettings(kind="snapshot"))


def test_the_next_version_has_the_events_too(bundles: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shop"
    shutil.copytree(bundles, folder)
    client, server = client_of(folder)
    with client:
        post(client, *[EVENT | {"time": NOW - 60 - i} for i in range(5)])
        point_at(folder, "second")
        assert server.versions.refresh()
        second = server.versions.current
        row = second.encoder.items.index(110)
        until = time.monotonic() + 30
        while second.counters.items["item_rate"][row] < 0.5 and time.monotonic() < until:
            time.sleep(0.01)
        rows, positives = rated(second.counters, row)
        expected = (positives + 5 + 10 * second.counters.mean) / (rows + 5 + 10)
        assert second.counters.items["item_rate"][row] == pytest.approx(expected)


def test_the_document_describes_the_route(bundles: Path) -> None:
    with client_of(bundles)[0] as client:
        described = client.get("/openapi.json").json()["paths"]["/v1/events"]["post"]
        answered = post(client, EVENT, EVENT | {"item": -1}).json()
        schema = described["responses"]["200"]["content"]["application/json"]["schema"]
        assert set(answered) == set(schema["properties"])
