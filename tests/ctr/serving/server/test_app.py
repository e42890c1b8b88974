"""The server's routes, over ASGI: answers, refusals, sizes, metrics, the two protocols."""

from __future__ import annotations

import gzip
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from ctr.serving.answering.answers import Stages
from ctr.serving.answering.answers import answer as answer_body
from ctr.serving.answering.versions import AliasSource, Versions
from ctr.serving.bundle import open_bundle
from ctr.serving.ranker import Ranker
from ctr.serving.server.app import Server, token_of
from ctr.serving.settings import LogSettings, QueueSettings
from features.encoding.request import Limits
from features.errors import ConfigError
from features.store.pointer import point_at
from tests.ctr.serving.shop import REQUEST, client_of, serve_config
from tests.ctr.serving.tracking import ALIAS, tracking_server

TOKEN = "a secret"
UNTOLD = 'quadrank_pointer_errors_total{of="champion"} '


@pytest.fixture
def shop(bundles: Path, tmp_path: Path) -> Path:
    """Both bundles, and a pointer to the first, of one test alone."""
    return shutil.copytree(bundles, tmp_path / "shop")


@pytest.fixture
def client(shop: Path) -> Iterator[TestClient]:
    with client_of(shop)[0] as client:
        yield client


def test_an_answer_has_the_scores_of_the_ranker(client, shop):
    answer = client.post("/v1/rank", json=REQUEST | {"id": "r1"}).json()
    expected = Ranker.load(shop / "first").rank(REQUEST)
    assert answer["ranked"] == [pytest.approx({"item": one.item, "score": one.score}) for one in expected.ranked]
    assert (answer["request_id"], answer["model_version"], answer["state"]) == ("r1", "first", "ok")
    assert answer["unknown"] == {"candidates": len(expected.unknown_candidates), "history": expected.unknown_history}
    assert list(answer["took_ms"]) == ["decode", "encode", "model", "respond"]
    assert all(milliseconds > 0 for milliseconds in answer["took_ms"].values())


def test_top_k_gives_the_best(client):
    whole = client.post("/v1/rank", json=REQUEST).json()["ranked"]
    assert client.post("/v1/rank", json=REQUEST | {"top_k": 2}).json()["ranked"] == whole[:2]


def test_values_that_a_request_does_not_give_are_counted(client):
    without = REQUEST | {"history": [101, {"item": 107, "label": 0}]}
    given, lacking = (client.post("/v1/rank", json=one).json()["missing"] for one in (REQUEST, without))
    assert lacking["label"] == 1 and "label" not in given
    assert 'quadrank_missing_total{column="label"} 1.0' in client.get("/metrics").text


def test_strict_answers_400_for_a_request_that_lacks_values(shop):
    whole = {"item": 101, "time": 1_000, "clicked": 1}
    with client_of(shop, strict=True)[0] as client:
        asked = REQUEST | {"time": 1_010, "history": [whole, whole | {"clicked": None}]}
        answer = client.post("/v1/rank", json=asked)
        assert answer.status_code == 400
        assert "missing: label (1), residual (1)." in answer.json()["error"]["message"]
        # A counter that the event does not bring is the bundle's: it is not missing. Nor is an unknown id.
        answer = client.post("/v1/rank", json=asked | {"history": [whole, whole | {"item": 999}]})
        assert (answer.status_code, answer.json()["missing"]) == (200, {})
        assert answer.json()["unknown"]["history"] == 1


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[1]", "expected a JSON object"),
        (b'{"candidates": [NaN]}', "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"candidates": []}', "nothing to rank"),
        (b'{"candidates": [-1]}', "cannot be an id"),
        (b'{"candidates": [1.7]}', "cannot be an id"),
        (b'{"candidates": [9223372036854775808]}', "cannot be an id"),
        (b'{"candidates": [true]}', "cannot be an id"),
        (b'{"candidates": [1], "top_k": 0}', "top_k"),
        (b'{"candidates": [1], "top_k": true}', "top_k"),
        (b'{"candidates": [1], "id": ""}', "id: expected text"),
        (b'{"candidates": [1], "histroy": []}', "history"),
        (b'{"candidates": [1, 2, 3]}', "at most 2"),
        (b'{"candidates": ["\xff"]}', "not valid JSON"),
    ],
)
def test_a_bad_request_is_refused_with_the_reason(shop, body, message):
    with client_of(shop, limits=Limits(max_candidates=2))[0] as client:
        answer = client.post("/v1/rank", content=body)
        assert answer.status_code == 400
        assert message in answer.json()["error"]["message"] and str(shop) not in answer.text
        assert client.post("/v1/rank", json={"candidates": [110, 111]}).status_code == 200


def test_a_content_length_that_is_no_number_is_passed_over(client):
    """Not every ASGI server has checked it before; the body is cut at its limit all the same."""
    answer = client.post("/v1/rank", content=json.dumps(REQUEST), headers={"content-length": "9" * 5000})
    assert answer.status_code == 200


@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_body_is_refused(shop, chunked):
    body = b" " * 3000
    with client_of(shop, max_body_kib=2)[0] as client:
        answer = client.post("/v1/rank", content=iter([body[:1500], body[1500:]]) if chunked else body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")
        whole = json.dumps(REQUEST).encode().ljust(2048)  # exactly at the limit
        answer = client.post("/v1/rank", content=iter([whole[:1000], whole[1000:]]) if chunked else whole)
        assert answer.status_code == 200


def test_a_fault_of_ours_says_nothing_of_the_machine(shop, monkeypatch):
    def broken(*_: Any) -> None:
        raise RuntimeError(f"in {shop}")

    client, server = client_of(shop)
    with client:
        monkeypatch.setattr(type(server.versions.current), "scores", broken)
        answer = client.post("/v1/rank", json=REQUEST)
    assert answer.status_code == 500 and answer.json()["error"]["code"] == "internal"
    assert str(shop) not in answer.text and "Traceback" not in answer.text


def test_a_full_queue_is_answered_at_once(shop, monkeypatch):
    client, server = client_of(shop, queue=QueueSettings(size=1, retry_after_s=7))
    with client:
        monkeypatch.setattr(server.ranking.pool, "_taken", 2)
        answer = client.post("/v1/rank", json=REQUEST)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "7")
        assert 'quadrank_shed_total{reason="full"} 1.0' in client.get("/metrics").text


def test_what_would_be_answered_too_late_is_not_ranked(shop, monkeypatch):
    client, server = client_of(shop, queue=QueueSettings(deadline_ms=500))
    with client:
        monkeypatch.setattr(server.ranking.pool, "_taken", 1)
        monkeypatch.setattr(server.ranking.pool, "_typical", 0.3)
        assert client.post("/v1/rank", json=REQUEST).status_code == 503
        assert 'quadrank_shed_total{reason="late"} 1.0' in client.get("/metrics").text


def test_the_metrics_tell_candidates_scores_and_the_models_age(client, shop):
    scores = [entry["score"] for entry in client.post("/v1/rank", json=REQUEST).json()["ranked"]]
    lines = dict(line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines() if not line.startswith("#"))
    assert float(lines["quadrank_candidates_total"]) == 5
    assert float(lines["quadrank_scores_sum_total"]) == pytest.approx(sum(scores), rel=1e-5)
    assert 0 < float(lines["quadrank_model_age_seconds"]) < 3600
    assert float(lines['quadrank_seconds_count{stage="model"}']) == 1
    windows = open_bundle(shop / "first").manifest.windows.values()
    newest = max(window.last_time for window in windows)
    assert min(window.last_time for window in windows) < newest
    assert float(lines["quadrank_model_data_end_seconds"]) == newest / 1e6


def test_a_stage_ends_where_the_next_one_begins(monkeypatch):
    stages, moments = Stages(_since=1.0), iter([3.0, 7.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(moments))
    stages.end("decode")
    stages.end("encode")
    assert stages.seconds == {"decode": 2.0, "encode": 4.0}


def test_the_metrics_tell_how_long_the_pointer_was_not_read(shop, monkeypatch):
    def age() -> float:
        lines = client.get("/metrics").text.splitlines()
        return float(next(line for line in lines if line.startswith("quadrank_pointer_age_seconds ")).split()[1])

    client, server = client_of(shop)
    with client:
        later = time.time() + 100
        monkeypatch.setattr(time, "time", lambda: later)
        (shop / "CURRENT").write_bytes(b"\xff")
        server.versions.refresh()
        assert 99 < age() < 200
        point_at(shop, "first")
        server.versions.refresh()
        assert age() == 0


def test_the_next_version_answers_after_a_refresh_and_the_one_before_after_a_rollback(shop):
    client, server = client_of(shop, token=TOKEN)
    with client:

        def version() -> str:
            return client.post("/v1/rank", json=REQUEST).json()["model_version"]

        assert version() == "first" and not server.versions.refresh()
        point_at(shop, "second")
        assert server.versions.refresh() and version() == "second"
        assert client.post("/v1/rollback").status_code == 401
        assert client.post("/v1/rollback", headers={"authorization": "Bearer a secret!"}).status_code == 401
        rolled_back = client.post("/v1/rollback", headers={"authorization": f"Bearer {TOKEN}"})
        assert rolled_back.json() == {"model_version": "first"} and version() == "first"
        assert not server.versions.refresh(), "the pointer still names the version that was rolled back"


def test_what_was_answered_warms_the_next_version_up(shop, monkeypatch):
    client, server = client_of(shop)
    warmed: list[Any] = []
    with client:
        client.post("/v1/rank", json=REQUEST | {"id": "r1"})
        monkeypatch.setattr(Versions, "_warm", lambda versions, ranker: warmed.extend(versions._recent))
        point_at(shop, "second")
        assert server.versions.refresh() and warmed == [REQUEST]


def test_a_changed_bundle_is_refused_and_the_one_before_answers_on(shop):
    client, server = client_of(shop)
    with client:
        table = shop / "second" / "item_table.bin"
        content = bytearray(table.read_bytes())
        content[-1] ^= 1
        table.write_bytes(content)
        point_at(shop, "second")
        assert not server.versions.refresh()
        assert client.post("/v1/rank", json=REQUEST).json()["model_version"] == "first"
        text = client.get("/metrics").text
        assert "quadrank_versions_refused_total 1.0" in text
        assert UNTOLD + "0.0" in text


def test_a_pointer_that_cannot_be_read_is_no_refused_version(shop, caplog):
    client, server = client_of(shop)
    with client:
        (shop / "CURRENT").unlink()
        assert not server.versions.refresh()
        (shop / "CURRENT").write_bytes(b"\xff")
        assert not server.versions.refresh()
        text = client.get("/metrics").text
        assert UNTOLD + "2.0" in text
        assert "quadrank_versions_refused_total 0.0" in text
        assert client.post("/v1/rank", json=REQUEST).json()["model_version"] == "first"
    told = [record.message for record in caplog.records if record.name == "quadrank.serve"]
    assert any(one.startswith("no bundle is named, the version before answers on: ") for one in told)
    assert not any("is refused" in one for one in told)


@pytest.mark.parametrize("answer", [None, b"cut", {"model_version": None}], ids=["away", "cut", "garbage"])
def test_an_alias_that_cannot_be_read_is_no_refused_version(shop, answer):
    with tracking_server() as tracking:
        tracking.name("first")
        server = Server(AliasSource(tracking.address, "shop", "champion", shop), serve_config())
        with TestClient(server.app()) as client:
            tracking.answers[ALIAS] = answer
            assert not server.versions.refresh()
            text = client.get("/metrics").text
            assert UNTOLD + "1.0" in text
            assert "quadrank_versions_refused_total 0.0" in text
            tracking.name("second")
            assert server.versions.refresh()


def test_routes_that_write_do_not_exist_without_a_token(client):
    assert client.post("/v1/rollback").status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("POST", "/v1/events", 404, "not_found"),
        ("GET", "/v1/nothing", 404, "not_found"),
        ("GET", "/v1/rank", 405, "not_allowed"),
    ],
)
def test_what_is_no_route_is_told_as_every_error_is(client, method, path, status, code):
    answer = client.request(method, path)
    assert answer.status_code == status
    assert answer.json()["error"]["code"] == code
    assert answer.headers.get("allow") == ("POST" if status == 405 else None)


def test_what_is_no_route_of_the_protocol_is_told_as_the_protocol_does(client):
    assert isinstance(client.get("/v2/nothing").json()["error"], str)
    assert isinstance(client.get("/v2/models/shop/infer").json()["error"], str)


def test_a_compressed_body_is_told_from_one_that_is_no_json(client):
    content = gzip.compress(json.dumps(REQUEST).encode())
    answer = client.post("/v1/rank", content=content, headers={"content-encoding": "gzip"})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == (
        "Content-Encoding: 'gzip' is not read here. Send the body as it is, without compression."
    )
    plain = client.post("/v1/rank", content=json.dumps(REQUEST), headers={"content-encoding": "Identity"})
    assert plain.status_code == 200


@pytest.mark.parametrize("token", ["tökén", "two words\x00"])
def test_a_token_that_no_header_can_hold_is_refused(tmp_path, monkeypatch, token):
    (tmp_path / "token").write_text(f"{token}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"token: holds .* ASCII"):
        token_of(tmp_path / "token")
    if "\x00" not in token:
        monkeypatch.setenv("QUADRANK_TOKEN", token)
        with pytest.raises(ConfigError, match="QUADRANK_TOKEN: holds 'ö'"):
            token_of(None)


def test_a_token_of_the_environment_is_read_without_the_end_of_its_line(monkeypatch):
    """A secret that was written with one; a client's header would never be equal to it."""
    monkeypatch.setenv("QUADRANK_TOKEN", "secret\n")
    assert token_of(None) == "secret"
    monkeypatch.setenv("QUADRANK_TOKEN", "\n")
    assert token_of(None) is None


def test_a_token_comes_from_a_file_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("QUADRANK_TOKEN", raising=False)
    assert token_of(None) is None
    (tmp_path / "token").write_text("t\n")
    assert token_of(tmp_path / "token") == "t"
    (tmp_path / "token").write_text("t \n# of March\n")
    assert token_of(tmp_path / "token") == "t"
    (tmp_path / "empty").write_text("\n")
    for wrong in (tmp_path / "empty", tmp_path / "none"):
        with pytest.raises(ConfigError):
            token_of(wrong)
    monkeypatch.setenv("QUADRANK_TOKEN", "e")
    assert token_of(None) == "e"


def test_the_log_holds_what_was_answered(shop, tmp_path):
    log = LogSettings(folder=tmp_path / "served")
    with client_of(shop, log=log)[0] as client:
        answers = [client.post("/v1/rank", json=REQUEST | {"id": name}).json() for name in ("a", "b")]
    (part,) = (tmp_path / "served").iterdir()
    rows = pq.read_table(part).to_pylist()
    assert [row["request"] for row in rows] == ["a", "b"]
    for row, answer in zip(rows, answers, strict=True):
        by_position = sorted(zip(row["positions"], row["candidates"], row["scores"], strict=True))
        assert [item for _, item, _ in by_position] == [str(entry["item"]) for entry in answer["ranked"]]
        assert [score for *_, score in by_position] == pytest.approx([entry["score"] for entry in answer["ranked"]])
        assert (row["user"], row["version"], json.loads(row["context"])) == ("u3", "first", REQUEST["context"])


def test_hashed_users_need_a_key_and_never_show_the_id(shop, tmp_path, monkeypatch):
    log = LogSettings(folder=tmp_path / "served", users="hashed")
    monkeypatch.delenv("QUADRANK_LOG_KEY", raising=False)
    with pytest.raises(ConfigError, match="QUADRANK_LOG_KEY"):
        client_of(shop, log=log)
    monkeypatch.setenv("QUADRANK_LOG_KEY", "k")
    with client_of(shop, log=log)[0] as client:
        client.post("/v1/rank", json=REQUEST)
    (part,) = (tmp_path / "served").iterdir()
    (user,) = pq.read_table(part)["user"].to_pylist()
    # From `printf u3 | openssl dgst -sha256 -hmac k`: without the key nobody can try ids out.
    assert user == "d9d10ef68c98a0be877437b74a831e6c"


def test_the_document_is_served_and_needs_nothing_from_elsewhere(client):
    document = client.get("/openapi.json").json()
    assert "/v1/rank" in document["paths"]
    page = client.get("/docs").text
    assert "/v1/rank" in page and "http" not in page.replace("<!doctype html>", "")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)


def as_the_ranker_takes_it(ranker: Ranker, body: bytes) -> tuple[int, Any]:
    """The status that a body deserves, and its ranked candidates."""
    try:
        return 200, json.loads(answer_body(ranker, body, Limits()).body)["ranked"]
    except ConfigError:
        return 400, None


@pytest.fixture(scope="module")
def first(bundles: Path) -> Ranker:
    return Ranker.load(bundles / "first")


@pytest.fixture(scope="module")
def fuzzed(bundles: Path) -> Iterator[TestClient]:
    with client_of(bundles)[0] as client:
        yield client


@given(st.sampled_from([*REQUEST, "top_k", "id", "user_columns", "other"]), json_values)
@settings(max_examples=200, deadline=None)
def test_any_json_is_ranked_or_refused_as_the_ranker_does(fuzzed, first, key, value):
    body = json.dumps({**REQUEST, key: value}).encode(errors="surrogatepass")
    found = fuzzed.post("/v1/rank", content=body)
    assert (found.status_code, found.json().get("ranked")) == as_the_ranker_takes_it(first, body)


@given(st.integers(0, len(json.dumps(REQUEST))), st.integers(0, 255))
@settings(max_examples=200, deadline=None)
def test_any_changed_byte_is_ranked_or_refused_as_the_ranker_does(fuzzed, first, place, byte):
    text = json.dumps(REQUEST).encode()
    body = text[:place] + bytes([byte]) + text[place + 1 :]
    found = fuzzed.post("/v1/rank", content=body)
    assert (found.status_code, found.json().get("ranked")) == as_the_ranker_takes_it(first, body)
