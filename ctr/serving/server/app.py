"""The ASGI app: routes, sizes, tokens and error answers. Ranking itself runs in the pool's threads."""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from ctr.serving.answering.answers import Answer, read_body
from ctr.serving.answering.assignment import CHAMPION
from ctr.serving.answering.events import EventReader
from ctr.serving.answering.live import LiveCounters
from ctr.serving.answering.metrics import ServerMetrics
from ctr.serving.answering.pool import OverloadedError, RankingPool
from ctr.serving.answering.popularity import PopularityAnswer
from ctr.serving.answering.ranking import Ranking
from ctr.serving.answering.versions import Source, Versions
from ctr.serving.items.new_items import items_of_json
from ctr.serving.items.upsert import Upserted, upsert_items
from ctr.serving.pasts.stores import Stores
from ctr.serving.ranker import Ranker
from ctr.serving.server import inference
from ctr.serving.server.openapi import DOCUMENT, page
from ctr.serving.server.refusals import NotFoundError, SlowError, TooLargeError, UnauthorizedError, refusal
from ctr.serving.server.served_log import ServedLog
from ctr.serving.settings import ServeConfig
from ctr.serving.termination import on_termination
from features.errors import ConfigError

TOKEN = "QUADRANK_TOKEN"  # allows routes that change what the server does
RANK = "/v1/rank"
UPSERT_WAITS = 60.0  # seconds, for upserts before it
log = logging.getLogger("quadrank.serve")
Endpoint = Callable[[Request], Awaitable[Response]]


class RankFirst(Starlette):
    """Starlette, whose routes and middleware a ranking does not wait for: its endpoint guards itself.

    Args:
        rank: the endpoint of `POST /v1/rank`.
        how: as of Starlette.
    """

    def __init__(self, rank: Endpoint, **how: Any) -> None:
        super().__init__(**how)
        self._rank = rank

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "http" and scope["path"] == RANK and scope["method"] == "POST":
            response = await self._rank(Request(scope, receive))
            await response(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


class Server:
    """A ranking server: what its routes do.

    Args:
        source: says which bundle is wanted.
        config: threads, limits, queue, log.
        token: what `Authorization: Bearer …` must say on routes that write; without one they do not exist.
    """

    def __init__(self, source: Source, config: ServeConfig, token: str | None = None) -> None:
        self.config = config
        self.leaving = False
        self.metrics = ServerMetrics()
        self._upserts = RankingPool(1, config.items.waiting, UPSERT_WAITS)
        self._token = token
        self.stores = Stores(config.pasts, self.metrics.past)
        self.live = LiveCounters(config.events.seconds, config.events.remembered)
        self._writers = RankingPool(1, config.queue.size, config.queue.deadline_ms / 1e3)
        self.log = ServedLog(config.log, self.metrics.log_dropped.inc) if config.log.folder else None
        self.versions = Versions(
            source,
            self._load,
            config.warm_up,
            on_swap=self._swapped,
            on_refusal=self._refused,
            on_untold=self._untold,
            on_look=self.metrics.looked,
        )
        self.ranking = Ranking(config, self._load, self.metrics, self._note_shadow)

    def app(self) -> Starlette:
        """The ASGI app."""
        rank = self._guarded("rank", self.rank)
        routes = [
            Route(RANK, rank, methods=["POST"]),
            Route("/v2", self.server_metadata),
            Route("/v2/health/live", self.live_now),
            Route("/v2/health/ready", self.ready_now),
            Route("/v2/models/{name}", self._guarded("metadata", self.model_metadata)),
            Route("/v2/models/{name}/versions/{version}", self._guarded("metadata", self.model_metadata)),
            Route("/v2/models/{name}/ready", self._guarded("metadata", self.model_ready)),
            Route("/v2/models/{name}/versions/{version}/ready", self._guarded("metadata", self.model_ready)),
            Route("/v2/models/{name}/infer", self._guarded("infer", self.infer), methods=["POST"]),
            Route("/v2/models/{name}/versions/{version}/infer", self._guarded("infer", self.infer), methods=["POST"]),
            Route("/metrics", self.prometheus),
            Route("/openapi.json", self.openapi),
            Route("/docs", self.docs),
        ]
        if self._token:
            routes += [
                Route("/v1/rollback", self._guarded("rollback", self.rollback), methods=["POST"]),
                Route("/v1/items", self._guarded("items", self.items), methods=["POST"]),
                Route("/v1/events", self._guarded("events", self.events), methods=["POST"]),
            ]
        return RankFirst(rank, routes=routes, lifespan=self._lifespan, exception_handlers={HTTPException: _no_route})

    async def rank(self, request: Request) -> Response:
        """`POST /v1/rank`: candidates of one user, best first."""
        body = await self._body(request)
        answered = await self.ranking.rank(self.versions.current, body)
        return Response(answered.body, media_type="application/json", background=BackgroundTask(self._note, answered))

    async def rollback(self, request: Request) -> Response:
        """`POST /v1/rollback`: the version before answers again."""
        self._authorise(request)
        # In a thread: counters go over to the version, and requests are answered meanwhile.
        ranker = await asyncio.to_thread(self.versions.roll_back)
        return _json({"model_version": ranker.model_version})

    async def items(self, request: Request) -> Response:
        """`POST /v1/items`: a version that knows these items too answers from now on."""
        self._authorise(request)
        body = await self._body(request, self.config.items.max_body_kib)
        made, kept = await self._upserts.run(lambda: self._upsert(body))
        counts = {"new": made.new, "changed": made.changed, "upserted": made.rows}
        return _json({"model_version": made.model_version, **counts, "kept": kept})

    async def events(self, request: Request) -> Response:
        """`POST /v1/events`: what users did, for their pasts and for counters."""
        self._authorise(request)
        body = await self._body(request)
        return _json(await self._writers.run(lambda: self._take(body)))

    async def live_now(self, request: Request) -> Response:
        """`GET /v2/health/live`."""
        return _json({"live": True})

    async def ready_now(self, request: Request) -> Response:
        """`GET /v2/health/ready`: 200 while rankings are taken; a server listens once its bundle is checked."""
        ready = not self.leaving
        return _json({"ready": ready}, 200 if ready else 503)

    async def server_metadata(self, request: Request) -> Response:
        """`GET /v2`."""
        return _json({"name": "quadrank", "version": "1", "extensions": ["binary_tensor_data"]})

    async def model_metadata(self, request: Request) -> Response:
        """`GET /v2/models/NAME`."""
        return _json(inference.metadata(self._named(request)))

    async def model_ready(self, request: Request) -> Response:
        """`GET /v2/models/NAME/ready`."""
        name = self._named(request).bundle.manifest.name
        return _json({"name": name, "ready": not self.leaving}, 503 if self.leaving else 200)

    async def infer(self, request: Request) -> Response:
        """`POST /v2/models/NAME/infer`: encoded tensors in, scores out."""
        ranker = self._named(request)
        header = inference.header_length(request.headers.get(inference.BINARY))
        body = await self._body(request)
        content, length = await self.ranking.pool.run(lambda: inference.infer(ranker, body, header))
        if length is None:
            return Response(content, media_type="application/json")
        return Response(content, media_type="application/octet-stream", headers={inference.BINARY: str(length)})

    async def prometheus(self, request: Request) -> Response:
        """`GET /metrics`."""
        self.metrics.waiting.set(self.ranking.pool.taken)
        self.metrics.counters_newest.set(self.live.newest)
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def openapi(self, request: Request) -> Response:
        """`GET /openapi.json`."""
        return _json(DOCUMENT)

    async def docs(self, request: Request) -> Response:
        """`GET /docs`: the document as a page, without anything from elsewhere."""
        return HTMLResponse(page(DOCUMENT))

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        self.versions.watch(self.config.poll_seconds)
        self.ranking.start(with_events=bool(self._token))
        if self._token:
            self.live.start()
        with on_termination(self._leave):
            yield
        self.leaving = True
        self.versions.close()
        self.ranking.close()
        for pool in (self._writers, self._upserts):
            pool.close()
        self.live.close()
        self.stores.close()
        if self.log is not None:
            self.log.close()

    def _leave(self, stop: Callable[[], None]) -> None:
        """Say not to be ready, answer on for `leave_s`, and then stop."""
        if self.leaving:  # asked twice: at once
            stop()
            return
        self.leaving = True
        log.info("leaving: not ready from now on, answering for %g s more", self.config.leave_s)
        asyncio.get_running_loop().call_later(self.config.leave_s, stop)

    def _guarded(self, route: str, endpoint: Endpoint) -> Endpoint:
        """The endpoint with errors as answers: no path, version or trace of ours in them."""

        async def guarded(request: Request) -> Response:
            response = await self._answered(endpoint, request)
            self.metrics.requests.labels(route, str(response.status_code)).inc()
            return response

        return guarded

    async def _answered(self, endpoint: Endpoint, request: Request) -> Response:
        try:
            with self.metrics.took.time():
                return await endpoint(request)
        except ClientDisconnect:
            return Response(status_code=499)
        except Exception as error:
            if isinstance(error, OverloadedError):
                self.metrics.shed.labels(error.reason).inc()
            status, code, message = refusal(error)
            response = _refused(request, status, code, message)
            if status == 408:
                response.headers["Connection"] = "close"  # the rest of the body is no next request
            if status == 503:
                response.headers["Retry-After"] = str(self.config.queue.retry_after_s)
            return response

    async def _body(self, request: Request, limit_kib: int | None = None) -> bytes:
        limit_kib = limit_kib or self.config.max_body_kib
        limit = limit_kib * 1024
        compressed = request.headers.get("content-encoding", "identity")
        if compressed.lower() != "identity":
            raise ConfigError(
                f"Content-Encoding: {compressed[:40]!r} is not read here. Send the body as it is, without compression."
            )
        if (inference.whole_number(request.headers.get("content-length", "")) or 0) > limit:
            raise TooLargeError(limit_kib)
        parts, size = [], 0
        try:
            async with asyncio.timeout(self.config.receive_seconds):
                async for part in request.stream():
                    size += len(part)
                    if size > limit:
                        raise TooLargeError(limit_kib)
                    parts.append(part)
        except TimeoutError:
            raise SlowError(self.config.receive_seconds) from None
        return b"".join(parts)

    def _authorise(self, request: Request) -> None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), (self._token or "").encode()):
            raise UnauthorizedError

    def _upsert(self, body: bytes) -> tuple[Upserted, bool]:
        raw, most = read_body(body), self.config.items.max_items
        return self.versions.upsert(lambda path: upsert_items(path, lambda encoder: items_of_json(encoder, raw, most)))

    def _take(self, body: bytes) -> dict[str, Any]:
        """Keep the events of a body for pasts and counters; what the answer says of them.

        Pasts come first: where they cannot be kept, nothing is counted, and the events may be sent again.
        """
        ranker = self.versions.current
        events = EventReader(ranker.requests, self.config.events.most).read(body, datetime.now(UTC))
        for user, of_user in events.by_user().items():
            ranker.pasts.add(user, of_user)
        self.ranking.take(events)
        outcomes = {
            "taken": len(events.users),
            "refused": events.refused,
            "repeated": self.live.add(events),
            "unlabelled": int(np.isnan(events.label_E).sum()),
        }
        for outcome, number in outcomes.items():
            self.metrics.events.labels(outcome).inc(number)
        return outcomes | ({"reason": events.reason} if events.reason else {})

    def _load(self, path: Path) -> Ranker:
        ranker = Ranker.load(path, self.config.threads, self.config.limits)
        ranker.pasts = self.stores.of(ranker.bundle.path, ranker.encoder)
        return ranker

    def _named(self, request: Request) -> Ranker:
        ranker, path = self.versions.current, request.path_params
        if path["name"] != ranker.bundle.manifest.name or path.get("version") not in (None, ranker.model_version):
            raise NotFoundError(
                "This server has no such model or version. Each answer of /v1/rank names its `model_version`."
            )
        return ranker

    async def _note(self, answered: Answer | PopularityAnswer) -> None:
        """Count and log what was answered, and let the shadow score it, once the client has its answer."""
        await asyncio.sleep(0)  # what was written leaves at the end of the event loop's turn
        for stage, seconds in answered.stages.items():
            self.metrics.seconds.labels(stage).observe(seconds)
        self.metrics.waiting.set(self.ranking.pool.taken)  # another process may be asked for it
        if not isinstance(answered, Answer):
            return
        metrics, encoded = self.metrics, answered.encoded
        self.ranking.note(answered)
        metrics.candidates.inc(len(answered.scores))
        metrics.score_sum.inc(float(answered.scores.sum()))
        metrics.unknown_values(self.versions.current.encoder.contract, answered.request, encoded)
        for column, values in encoded.missing.items():
            metrics.missing.labels(column).inc(values)
        for part in answered.unusual:
            metrics.unusual.labels(part).inc()
        self.versions.remember(answered.raw)
        if self.log is not None:
            self.log.add(answered)
        self.ranking.shadow(answered)

    def _note_shadow(self, scored: Answer) -> None:
        self.ranking.note(scored)
        if self.log is not None:
            self.log.add(scored)

    def _swapped(self, ranker: Ranker, seconds: float) -> None:
        self.live.follow(ranker)
        self.metrics.counters_newest.set(self.live.newest)
        self.metrics.swapped(ranker, seconds)
        log.info("version %s answers, loaded in %.1f s", ranker.model_version, seconds)

    def _refused(self, path: Path, reason: str) -> None:
        self.metrics.refused.inc()
        log.error("%s is refused, the version before answers on: %s", path, reason)

    def _untold(self, reason: str) -> None:
        self.metrics.pointer_errors.labels(CHAMPION).inc()
        log.warning("no bundle is named, the version before answers on: %s", reason)


def token_of(file: Path | None) -> str | None:
    """The token of routes that write: a file's first line, else the environment's.

    Raises:
        ConfigError: the file cannot be read or is empty, or the token is one that no header can hold.
    """
    if file is None:
        return _sendable(TOKEN, os.environ.get(TOKEN, "").strip()) or None
    try:
        token = file.read_text(encoding="utf-8").strip().partition("\n")[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read: {error}") from None
    if not token:
        raise ConfigError(f"{file}: is empty. Write the token into it.")
    return _sendable(str(file), token)


def _sendable(where: str, token: str) -> str:
    """The token, which clients send in a header: each would write other bytes for what is not of ASCII."""
    for sign in token:
        if not (sign.isascii() and sign.isprintable()):
            raise ConfigError(f"{where}: holds {sign!r}. Write a token of letters, digits and signs of ASCII.")
    return token


async def _no_route(request: Request, error: Exception) -> Response:
    """No route of this path, or none that takes this method, told as every other error is."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        code, message = "not_allowed", f"This route takes {(error.headers or {}).get('Allow', 'another method')}."
    else:
        code, message = (
            "not_found",
            "No such route. GET /docs has all; those that write need a token and a server of one process.",
        )
    response = _refused(request, error.status_code, code, message)
    response.headers.update(error.headers or {})
    return response


def _refused(request: Request, status: int, code: str, message: str) -> Response:
    """An error as an answer: the Open Inference Protocol has one text where our own routes have an object."""
    content = message if request.url.path.startswith("/v2") else {"code": code, "message": message}
    return _json({"error": content}, status)


def _json(content: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(content), status, media_type="application/json")
