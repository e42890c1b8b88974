"""Requests that no sane client sends, and an app asked without a socket."""

from __future__ import annotations

import asyncio
import copy
import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.ctr.serving.shop import REQUEST

HANGS = 30.0  # seconds; a request takes milliseconds


@dataclass(frozen=True)
class Call:
    """A POST: its body, its path, and headers beside (or in place of) a true content-length."""

    body: bytes
    path: str = "/v1/rank"
    headers: Mapping[bytes, bytes] = field(default_factory=dict)


def asked(app: Any, calls: list[Call]) -> list[tuple[int, bytes]]:
    """Statuses and answers, over ASGI without a socket, each within `HANGS` seconds."""

    async def one(call: Call) -> tuple[int, bytes]:
        headers = {b"content-length": str(len(call.body)).encode()} | dict(call.headers)
        scope = {
            "type": "http", "method": "POST", "path": call.path, "raw_path": call.path.encode(), "query_string": b"",
            "headers": list(headers.items()), "http_version": "1.1", "scheme": "http", "root_path": "", "client": None,
            "server": None,
        }  # fmt: skip
        given, found = [{"type": "http.request", "body": call.body}], dict[str, Any]()

        async def receive() -> dict[str, Any]:
            return given.pop() if given else {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            found.update(message)

        await asyncio.wait_for(app(scope, receive, send), HANGS)
        return found["status"], found["body"]

    async def each() -> list[tuple[int, bytes]]:
        return [await one(call) for call in calls]

    return asyncio.run(each())


VALUES: list[Any] = [
    -1, 0, 1, 1.7, 2**31, 2**63 - 1, 2**63, 10**40, -(2**63), float("nan"), float("inf"), 1e308, 5e-324, True, None, "",
    "110", "u3", "x" * 5000, "\ud800", "\x00", "2026-01-01T00:00:00Z", [], {}, [[]], [{}], {"item": 110}, {"item": -1},
    {"item": 110, "time": 5}, {"item": 110, "label": 1}, {"item": 110, "item_rate": 0.5}, {"": 0},
]  # fmt: skip
KEYS = [*REQUEST, "id", "top_k", "time", "user_columns", "item", "label", "residual", "clicked", "device", "load", "x",
        "columns", "vectors", "name", "shape", "datatype", "data", "parameters", "binary_data_size"]  # fmt: skip


def mutated(draw: random.Random, request: Any) -> bytes:
    """A request after a few changes of its values, and then perhaps of its bytes."""
    whole: Any = json.loads(json.dumps(request))
    for _ in range(draw.randint(1, 2)):
        places = list(places_of(whole))
        owner, key = draw.choice(places)
        match draw.randrange(5):
            case 0:
                del owner[key]
            case 1:
                owner[draw.choice(KEYS) if isinstance(owner, dict) else key] = copy.deepcopy(draw.choice(VALUES))
            case 2 if isinstance(owner, list):
                owner.insert(draw.randrange(len(owner) + 1), copy.deepcopy(draw.choice(VALUES)))
            case 3 if isinstance(owner, list):
                owner *= draw.choice([0, 2, 30])
            case _:
                owner[key] = copy.deepcopy(draw.choice(VALUES))
        if not whole:
            break
    body = bytearray(json.dumps(whole).encode())
    for _ in range(draw.choice([0, 0, 0, 1, 3])):
        place = draw.randrange(len(body))
        if draw.random() < 0.5:
            body[place] = draw.randrange(256)
        else:
            del body[place : place + draw.randint(1, 10)]
        if not body:
            break
    return bytes(body)


def places_of(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (owner, key) of a JSON value."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from places_of(value[key])
