"""An MLflow server of one route on loopback, for what follows an alias."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ALIAS = "/api/2.0/mlflow/registered-models/alias?name=shop&alias=champion"


class Tracking:
    """What the server answers by path: JSON, or bytes in place of a whole answer; and what it was told last.

    Args:
        authorization: that a request must have; none: any request is answered.
    """

    def __init__(self, authorization: str | None = None) -> None:
        self.answers: dict[str, Any] = {}
        self.authorization = authorization
        self.told: list[str | None] = []
        self.address = ""

    def name(self, bundle: str) -> None:
        """Let the alias name the model version of this bundle."""
        self.answers[ALIAS] = {"model_version": {"tags": [{"key": "model_version", "value": bundle}]}}


@contextmanager
def tracking_server() -> Iterator[Tracking]:
    """Run one until the block ends."""
    tracking = Tracking()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            tracking.told.append(self.headers["Authorization"])
            found = tracking.answers.get(self.path)
            if isinstance(found, bytes):
                self.wfile.write(found)
                return
            if tracking.authorization and self.headers["Authorization"] != tracking.authorization:
                self.send_response(401)
            elif isinstance(found, str):
                self.send_response(307)
                self.send_header("Location", found)
            else:
                self.send_response(200 if found else 404)
            self.end_headers()
            self.wfile.write(json.dumps(found).encode())

        def log_message(self, *_: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    tracking.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield tracking
    finally:
        server.shutdown()
        server.server_close()
