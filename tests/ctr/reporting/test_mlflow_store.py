"""Whether anyone answers is known before MLflow is asked: any answer counts but a proxy's for a server that is gone."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ctr.reporting.mlflow_store import MlflowStore, _first_contact, _knock, _knock_in_time
from features.errors import ConfigError
from tests.ctr.reporting.mlflow_server import free_port


class Answering(http.server.BaseHTTPRequestHandler):
    codes: list[int] = []

    def do_GET(self) -> None:
        self.send_response(self.codes.pop(0))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctr.reporting.mlflow_store.SECONDS_BETWEEN_KNOCKS", 0)


@pytest.fixture
def uri() -> Iterator[str]:
    with http.server.HTTPServer(("127.0.0.1", 0), Answering) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("codes", [[200], [401], [404], [503, 200]])
def test_an_answer_is_a_sign_of_life(uri: str, codes: list[int]) -> None:
    Answering.codes = list(codes)
    _knock(uri)
    assert Answering.codes == []


def test_what_a_proxy_says_of_a_server_that_is_gone_is_none(uri: str) -> None:
    Answering.codes = [502, 504]
    with pytest.raises(ConnectionError, match="HTTP 504"):
        _knock(uri)


@pytest.mark.parametrize("kind", ["http", "postgresql+psycopg", "mysql"])
def test_nobody_at_the_port_is_away(kind: str) -> None:
    with pytest.raises(ConnectionError):
        _knock(f"{kind}://127.0.0.1:{free_port()}/db")


def test_a_server_that_takes_connections_and_says_nothing_is_told_from_a_dead_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ctr.reporting.mlflow_store.FIRST_TIMEOUT", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(TimeoutError, match="it is slow, or hangs"):
        _knock(f"http://127.0.0.1:{server.getsockname()[1]}")


def test_what_has_no_limit_of_its_own_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name server that says nothing, an address of many machines."""
    answered = threading.Event()
    monkeypatch.setattr("ctr.reporting.mlflow_store.SECONDS_TO_KNOCK", 0.05)
    monkeypatch.setattr("ctr.reporting.mlflow_store._ask", lambda uri: answered.wait(60))
    with pytest.raises(TimeoutError, match="no answer within"):
        _knock_in_time(["http://nobody"])
    answered.set()


def test_each_address_is_knocked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConnectionError):
        _knock_in_time(["sqlite:///a.db", f"http://127.0.0.1:{free_port()}"])
    _knock_in_time(["sqlite:///a.db", "sqlite:///b.db"])


@pytest.mark.parametrize(("spent", "seconds"), [(0.0, "4"), (4.0, "4"), (6.5, "2"), (9.0, "1"), (11.5, "1")])
def test_two_requests_have_what_a_slow_knock_left_of_twelve_seconds(spent: float, seconds: str) -> None:
    assert _first_contact(spent)["MLFLOW_HTTP_REQUEST_TIMEOUT"] == seconds


def test_a_file_is_there(tmp_path: Any) -> None:
    _knock(f"sqlite:///{tmp_path}/mlflow.db")


def test_what_is_wrong_with_an_address_is_told_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nosuch://me:secret@host/x")
    words = "nosuch://me:…@host/x: the MLflow store cannot be used"
    with pytest.raises(ConfigError, match=words) as refused, MlflowStore(tmp_path).contact():
        pass
    assert "secret" not in str(refused.value)
