"""Whether anyone answers is known before MLflow is asked: any answer counts but a proxy's for a server that is gone."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from ctr.reporting.mlflow_store import _knock
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


def test_a_file_is_there(tmp_path: Any) -> None:
    _knock(f"sqlite:///{tmp_path}/mlflow.db")
