"""A challenger answers its users, or scores in the shadow; what is wrong with it never harms the champion."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from starlette.testclient import TestClient

from ctr.serving.answering.assignment import meets_challenger
from ctr.serving.answering.challenger import Challenger
from ctr.serving.answering.versions import PointerSource
from ctr.serving.ranker import Ranker
from ctr.serving.server.app import Server
from ctr.serving.settings import ChallengerSettings, LogSettings
from features.store.pointer import point_at
from tests.ctr.serving.shop import REQUEST, serve_config

USERS = [f"u{i}" for i in range(20)]


@pytest.fixture
def shop(bundles: Path, tmp_path: Path) -> Path:
    """`CURRENT` names the first, `challenger/CURRENT` the second."""
    folder = shutil.copytree(bundles, tmp_path / "shop")
    (folder / "challenger").mkdir()
    shutil.copytree(folder / "first", folder / "challenger" / "first")
    (folder / "second").rename(folder / "challenger" / "second")
    point_at(folder / "challenger", "second")
    return folder


def client_of(folder: Path, token: str | None = None, **challenger: Any) -> tuple[TestClient, Server]:
    settings = {"bundle": folder / "challenger" / "CURRENT", "mode": "ab", "share": 0.5, "salt": "s", **challenger}
    config = serve_config(challenger=ChallengerSettings(**settings), log=LogSettings(folder=folder.parent / "served"))
    server = Server(PointerSource(folder / "CURRENT"), config, token)
    return TestClient(server.app()), server


def damage(bundle: Path) -> None:
    table = bundle / "item_table.bin"
    content = bytearray(table.read_bytes())
    content[-1] ^= 1
    table.write_bytes(content)


def number(client: TestClient, name: str) -> float:
    lines = dict(line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines() if not line.startswith("#"))
    return float(lines[name])


def until(condition: Callable[[], Any]) -> None:
    latest = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < latest
        time.sleep(0.005)


def logged(folder: Path) -> list[dict[str, Any]]:
    return [row for part in sorted((folder.parent / "served").iterdir()) for row in pq.read_table(part).to_pylist()]


def scores(ranker: Ranker, request: dict[str, Any]) -> list[Any]:
    return [pytest.approx({"item": one.item, "score": one.score}) for one in ranker.rank(request).ranked]


def test_each_user_is_answered_by_their_variant(shop):
    of = {"champion": Ranker.load(shop / "first"), "challenger": Ranker.load(shop / "challenger" / "second")}
    versions = {"champion": "first", "challenger": "second"}
    sums: dict[str, float] = dict.fromkeys(of, 0.0)
    with client_of(shop)[0] as client:
        for user in USERS:
            answer = client.post("/v1/rank", json=REQUEST | {"user": user}).json()
            variant = "challenger" if meets_challenger(user, "", 0.5, "s") else "champion"
            assert (answer["variant"], answer["model_version"]) == (variant, versions[variant])
            assert answer["ranked"] == scores(of[variant], REQUEST | {"user": user})
            sums[variant] += sum(entry["score"] for entry in answer["ranked"])
        met = sum(meets_challenger(user, "", 0.5, "s") for user in USERS)
        assert 0 < met < len(USERS)
        for variant, requests in (("challenger", met), ("champion", len(USERS) - met)):
            label = f'{{variant="{variant}"}}'
            assert number(client, f"quadrank_variant_requests_total{label}") == requests
            assert number(client, f"quadrank_variant_candidates_total{label}") == 5 * requests
            assert number(client, f"quadrank_variant_scores_sum_total{label}") == pytest.approx(sums[variant], rel=1e-5)
        assert number(client, "quadrank_candidates_total") == 5 * len(USERS)
        assert number(client, "quadrank_challenger_loaded") == 1
    variants = {row["user"]: row["variant"] for row in logged(shop)}
    assert variants == {u: "challenger" if meets_challenger(u, "", 0.5, "s") else "champion" for u in USERS}


def test_anonymous_requests_are_drawn_by_their_id(shop):
    anonymous = {key: value for key, value in REQUEST.items() if key != "user"}
    with client_of(shop)[0] as client:
        for i in range(10):
            answer = client.post("/v1/rank", json=anonymous | {"id": f"r{i}"}).json()
            assert (answer["variant"] == "challenger") == meets_challenger(None, f"r{i}", 0.5, "s")


def test_a_challenger_that_fails_leaves_the_request_to_the_champion(shop, monkeypatch):
    def broken(*_: Any) -> None:
        raise RuntimeError("no memory")

    client, server = client_of(shop, share=1.0)
    with client:
        assert server.ranking.challenger is not None
        monkeypatch.setattr(server.ranking.challenger.current, "scores", broken)
        answer = client.post("/v1/rank", json=REQUEST).json()
        assert (answer["variant"], answer["model_version"]) == ("champion", "first")
        assert number(client, "quadrank_challenger_failed_total") == 1
        assert client.post("/v1/rank", json={"candidates": [-1]}).status_code == 400
        assert number(client, "quadrank_challenger_failed_total") == 1, "the request was at fault"


def test_a_damaged_challenger_is_refused_once_and_the_champion_answers_all(shop):
    damage(shop / "challenger" / "second")
    client, server = client_of(shop, share=1.0)
    with client:
        challenger = server.ranking.challenger
        assert challenger is not None
        challenger.refresh()
        assert {client.post("/v1/rank", json=REQUEST | {"user": u}).json()["variant"] for u in USERS} == {"champion"}
        assert number(client, "quadrank_challenger_refused_total") == 1
        assert number(client, "quadrank_versions_refused_total") == 0
        assert number(client, "quadrank_challenger_loaded") == 0
        point_at(shop / "challenger", "first")
        challenger.refresh()
        assert client.post("/v1/rank", json=REQUEST).json()["variant"] == "challenger"


def test_a_missing_challenger_is_looked_for_again(shop):
    (shop / "challenger" / "CURRENT").unlink()
    client, server = client_of(shop, share=1.0)
    with client:
        assert client.post("/v1/rank", json=REQUEST).json()["variant"] == "champion"
        assert number(client, 'quadrank_pointer_errors_total{of="challenger"}') == 1
        assert number(client, 'quadrank_pointer_errors_total{of="champion"}') == 0
        assert number(client, "quadrank_challenger_refused_total") == 0
        point_at(shop / "challenger", "second")
        assert server.ranking.challenger is not None
        server.ranking.challenger.refresh()
        assert client.post("/v1/rank", json=REQUEST).json()["model_version"] == "second"
        (shop / "challenger" / "CURRENT").unlink()
        server.ranking.challenger.refresh()
        assert number(client, 'quadrank_pointer_errors_total{of="challenger"}') == 2
        assert number(client, "quadrank_challenger_refused_total") == 0


def test_a_damaged_challenger_stays_refused_while_its_pointer_cannot_be_read(shop):
    damage(shop / "challenger" / "second")
    client, server = client_of(shop, share=1.0)
    with client:
        challenger = server.ranking.challenger
        assert challenger is not None
        (shop / "challenger" / "CURRENT").unlink()
        challenger.refresh()
        point_at(shop / "challenger", "second")
        challenger.refresh()
        assert number(client, "quadrank_challenger_refused_total") == 1


def test_a_challenger_that_the_machine_had_no_memory_for_is_tried_again(shop):
    """As a version of the champion's: what is wrong with a bundle stays so, what the machine lacked may be there."""
    faults, refused = [MemoryError("no memory")], list[str]()

    def load(path: Path) -> Ranker:
        if faults:
            raise faults.pop()
        return Ranker.load(path)

    config = serve_config(challenger=ChallengerSettings(bundle=shop / "challenger" / "CURRENT"))
    challenger = Challenger(config, load, on_refusal=lambda path, reason: refused.append(reason))
    assert challenger.current is None
    challenger.refresh()
    assert challenger.current is not None and refused == ["no memory"]


def test_it_follows_its_own_pointer_and_the_champion_follows_its_own(shop):
    client, server = client_of(shop, share=1.0)
    with client:
        point_at(shop / "challenger", "first")
        assert not server.versions.refresh()
        assert server.ranking.challenger is not None
        server.ranking.challenger.refresh()
        answer = client.post("/v1/rank", json=REQUEST).json()
        assert (answer["variant"], answer["model_version"]) == ("challenger", "first")
        damage(shop / "challenger" / "second")
        point_at(shop / "challenger", "second")
        server.ranking.challenger.refresh()
        assert client.post("/v1/rank", json=REQUEST).json()["variant"] == "challenger", "the one before goes on"
        assert number(client, "quadrank_challenger_refused_total") == 1


def test_the_pointer_is_followed_without_a_call(shop):
    settings = ChallengerSettings(bundle=shop / "challenger" / "CURRENT", mode="ab", share=1.0)
    server = Server(PointerSource(shop / "CURRENT"), serve_config(challenger=settings, poll_seconds=0.02))
    with TestClient(server.app()) as client:
        point_at(shop / "challenger", "first")
        until(lambda: client.post("/v1/rank", json=REQUEST).json()["model_version"] == "first")


def test_the_shadow_scores_what_was_answered_and_only_the_log_and_the_metrics_show_it(shop):
    requests = {f"r{i}": REQUEST | {"user": user} for i, user in enumerate(USERS)}
    met = {name for name, request in requests.items() if meets_challenger(request["user"], "", 0.5, "s")}
    with client_of(shop, mode="shadow")[0] as client:
        for name, request in requests.items():
            answer = client.post("/v1/rank", json=request | {"id": name, "top_k": 2}).json()
            assert (answer["variant"], answer["model_version"]) == ("champion", "first")
        shadow = 'quadrank_variant_requests_total{variant="shadow"}'
        until(lambda: f"{shadow} {float(len(met))}" in client.get("/metrics").text)  # it is not there before the first
        assert number(client, "quadrank_candidates_total") == 5 * len(requests), "of what was answered"
    rows = logged(shop)
    assert {row["request"] for row in rows if row["variant"] == "shadow"} == met
    assert {row["request"] for row in rows if row["variant"] == "champion"} == set(requests)
    challenger = Ranker.load(shop / "challenger" / "second")
    for row in rows:
        if row["variant"] == "shadow":
            expected = {str(one.item): one.score for one in challenger.rank(requests[row["request"]]).ranked}
            found = dict(zip(row["candidates"], row["scores"], strict=True))
            assert found == pytest.approx(expected) and row["version"] == "second"
            assert sorted(place for place in row["positions"] if place is not None) == [0, 1]


def test_the_shadow_sees_the_instant_of_the_answer(shop, monkeypatch):
    client, server = client_of(shop, mode="shadow", share=1.0)
    seen: list[int] = []
    with client:
        assert server.ranking.challenger is not None
        for ranker in (server.versions.current, server.ranking.challenger.current):
            assert ranker is not None
            encode = ranker.encode
            monkeypatch.setattr(
                ranker, "encode", lambda request, *rest, encode=encode: (seen.append(request.time), encode(request))[1]
            )
        before = time.time_ns() // 1000
        client.post("/v1/rank", json=REQUEST)
        until(lambda: len(seen) == 2)
    assert seen[0] == seen[1] and before <= seen[0] <= time.time_ns() // 1000


def test_the_shadow_waits_for_rankings_and_drops_what_it_has_no_place_for(shop, monkeypatch):
    client, server = client_of(shop, mode="shadow", share=1.0, waiting=1)
    with client:
        monkeypatch.setattr(server.ranking.pool, "_taken", 1)  # another request runs all the time
        client.post("/v1/rank", json=REQUEST)
        assert server.ranking._shadow is not None
        until(lambda: not server.ranking._shadow._backlog)  # the thread has it in hand
        for _ in range(5):
            assert client.post("/v1/rank", json=REQUEST).status_code == 200
        assert number(client, "quadrank_shadow_dropped_total") == 4, "one waits"
        assert 'variant="shadow"' not in client.get("/metrics").text
        monkeypatch.setattr(server.ranking.pool, "_taken", 0)
        until(lambda: 'quadrank_variant_requests_total{variant="shadow"}' in client.get("/metrics").text)


def test_a_shadow_that_is_slow_keeps_no_answer_waiting(shop, monkeypatch):
    client, server = client_of(shop, mode="shadow", share=1.0)
    begun, end = threading.Event(), threading.Event()

    def slow(*_: Any) -> None:
        begun.set()
        assert end.wait(120)
        raise RuntimeError("late")

    with client:
        assert server.ranking.challenger is not None
        monkeypatch.setattr(server.ranking.challenger.current, "scores", slow)
        client.post("/v1/rank", json=REQUEST)
        assert begun.wait(60)
        for _ in range(5):
            assert client.post("/v1/rank", json=REQUEST).status_code == 200
        assert not end.is_set()
        end.set()
        until(lambda: number(client, "quadrank_challenger_failed_total") == 6)


def test_what_waits_for_the_shadow_at_the_end_is_dropped(shop, monkeypatch):
    client, server = client_of(shop, mode="shadow", share=1.0)
    with client:
        monkeypatch.setattr(server.ranking.pool, "_taken", 1)
        for _ in range(3):
            client.post("/v1/rank", json=REQUEST)
    assert "quadrank_shadow_dropped_total 3.0" in server.metrics.text().decode()


def test_its_counters_take_the_same_events(shop):
    client, server = client_of(shop, token="t", share=1.0)
    with client:
        challenger = server.ranking.challenger
        assert challenger is not None and challenger.current is not None
        row = challenger.current.encoder.item_rows("item", (110,))[0]
        event = {"user": "u1", "item": 110, "time": 2 * 10**6, "clicked": 1, "load": 1.0}
        body = json.dumps({"events": [event]})
        taken = client.post("/v1/events", content=body, headers={"Authorization": "Bearer t"}).json()
        assert taken["taken"] == 1, taken
        before = challenger.current.encoder.snapshot.items["item_rate"][row]
        until(lambda: challenger.current.counters.items["item_rate"][row] > before)  # type: ignore[union-attr]
        until(lambda: server.versions.current.counters.items["item_rate"][row] > before)
        champion = server.versions.current.counters.items["item_rate"][row]
        assert challenger.current.counters.items["item_rate"][row] == pytest.approx(champion)


def test_without_a_challenger_nothing_of_it_runs(bundles):
    server = Server(PointerSource(bundles / "CURRENT"), serve_config())
    with TestClient(server.app()) as client:
        assert client.post("/v1/rank", json=REQUEST).json()["variant"] == "champion"
        names = {thread.name for thread in threading.enumerate()}
        assert not names & {"shadow", "challenger"}


def test_the_log_has_the_variant_as_text(shop):
    with client_of(shop, share=0.0)[0] as client:
        client.post("/v1/rank", json=REQUEST)
    (part,) = (shop.parent / "served").iterdir()
    assert pq.read_schema(part).field("variant").type == pa.string()
