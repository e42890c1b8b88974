"""What a server does for itself waits until the client has its answer."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from ctr.serving.answering.versions import PointerSource
from ctr.serving.server.app import Server
from tests.ctr.serving.shop import REQUEST, serve_config


def test_an_answer_is_counted_after_it_was_sent(bundles: Path):
    server = Server(PointerSource(bundles / "CURRENT"), serve_config())
    app, sent, counted = server.app(), list[dict[str, Any]](), list[float]()
    scope = {"type": "http", "path": "/v1/rank", "method": "POST", "headers": [], "query_string": b""}

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": json.dumps(REQUEST).encode()}

    async def send(message: Any) -> None:
        sent.append(message)
        asyncio.get_running_loop().call_soon(note)

    def note() -> None:
        counted.append(server.metrics.candidates._value.get())

    asyncio.run(app(scope, receive, send))
    server.ranking.close()
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert len(json.loads(sent[1]["body"])["ranked"]) == len(REQUEST["candidates"])
    assert counted == [0.0, 0.0]
    assert server.metrics.candidates._value.get() == len(REQUEST["candidates"])
