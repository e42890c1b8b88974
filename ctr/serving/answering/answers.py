"""One request from the bytes of its body to the bytes of its answer, with the time that each stage took."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import numpy as np

from ctr.serving.order import best_first
from ctr.serving.pasts.source import RequestPasts
from ctr.serving.ranker import Ranker, refuse_missing
from features.calendar import text_of
from features.contract.contract import Contract
from features.encoding.encoder import EncodedRequest
from features.encoding.raw_values import ids_at
from features.encoding.request import Limits, Request, parse_request
from features.errors import ConfigError
from features.sources.times import end_of

LONGEST_ID = 128  # characters of a request id

AHEAD = 86_400_000_000  # µs, by which the clock of a client may be ahead

_decode = msgspec.json.Decoder().decode
encode_json = msgspec.json.Encoder().encode


@dataclass
class Stages:
    """Seconds by stage, in the order in which they ran."""

    seconds: dict[str, float] = field(default_factory=dict)
    _since: float = field(default_factory=time.perf_counter)

    def end(self, stage: str) -> None:
        """The stage ends now; the next one begins."""
        now = time.perf_counter()
        self.seconds[stage] = now - self._since
        self._since = now


@dataclass(frozen=True)
class Answer:
    """A ranked request, with what the log and the metrics need of it.

    Args:
        body: JSON.
        raw: the request as it was read, without the envelope.
        order: places of the ranked candidates in the request, best first.
        scores: of all candidates, in the order of the request, float32 [N].
        stages: seconds by stage.
        variant: who ranked it: `champion`, `challenger` or `shadow`.
        unusual: as `Ranker.unusual`.
        asked: the body that asked for it.
    """

    body: bytes
    request_id: str
    model_version: str
    raw: dict[str, Any]
    request: Request
    encoded: EncodedRequest
    order: np.ndarray
    scores: np.ndarray
    stages: dict[str, float]
    variant: str
    unusual: dict[str, int] = field(default_factory=dict)
    asked: bytes = b""


class Listed(msgspec.Struct, gc=False):
    """A ranked candidate in an answer. A thousand dicts would make Python look for garbage while it answers."""

    item: Any
    score: float | None  # None where popularity ranks


class ListedWithTasks(Listed, gc=False):
    """A ranked candidate, and the probabilities of further labels by name."""

    tasks: dict[str, float]


@dataclass(frozen=True)
class Asked:
    """A body that was read: its envelope, the request itself as raw JSON, and the body."""

    raw: dict[str, Any]
    request_id: str
    top_k: int | None
    stages: Stages
    body: bytes = b""


def read_body(body: bytes) -> dict[str, Any]:
    """The JSON object of a body.

    Raises:
        ConfigError: not JSON, nested too deep, or not an object.
    """
    try:
        raw = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"body: not valid JSON: {error}.") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"body: expected a JSON object, got {type(raw).__name__}.")
    return raw


def answer(ranker: Ranker, body: bytes, limits: Limits, strict: bool = False) -> Answer:
    """Rank what a body asks for: `read_request`, then `rank`."""
    return rank(ranker, read_request(body), limits, strict)


def read_request(body: bytes) -> Asked:
    """Read a body and its envelope, `id` and `top_k`.

    Raises:
        ConfigError: no JSON object, or an envelope that cannot be.
    """
    stages = Stages()
    raw = read_body(body)
    request_id, top_k = _envelope(raw)
    stages.end("decode")
    return Asked(raw, request_id, top_k, stages, body)


def rank(
    ranker: Ranker,
    asked: Asked,
    limits: Limits,
    strict: bool = False,
    variant: str = "champion",
    moment: int | None = None,
) -> Answer:
    """Rank what was asked for.

    Args:
        ranker: of the version that answers.
        asked: a body that was read.
        limits: largest request.
        strict: refuse a request that lacks what the model was trained on.
        variant: who ranks it.
        moment: the time, µs since 1970, of a request that says none; default now.

    Raises:
        ConfigError: it is no legal request of this bundle; says which part and why.
        NumericalError: the model gave a score that is no number.
    """
    stages = asked.stages
    request = parse_request(asked.raw, ranker.encoder.contract, limits)
    now = time.time_ns() // 1000
    if request.time is None:
        request = replace(request, time=now if moment is None else moment)
    elif request.time >= (latest := latest_time(ranker.encoder.contract, now)):
        raise ConfigError(
            f"time: {asked.raw['time']!r} is {text_of(request.time)}, and requests are before {text_of(latest)}. Whole "
            f"numbers count in {ranker.encoder.contract.interactions.time_unit!r}; leave `time` out for now."
        )
    is_asked = request.user is not None and not isinstance(ranker.pasts, RequestPasts)
    past = ranker.pasts.newest(request.user) if is_asked else None
    encoded = ranker.encode(request, past)
    if strict:
        refuse_missing(encoded)
    stages.end("encode")
    scores_NH = ranker.scores(encoded)
    stages.end("model")
    order = best_first(scores_NH[:, 0], asked.top_k)
    return _respond(ranker, asked, request, encoded, scores_NH, order, variant)


def latest_time(contract: Contract, now: int) -> int:
    """Before which times of requests and events are, µs: the end of `checks.latest`, by default a day from now."""
    latest = contract.checks.latest
    return now + AHEAD if latest is None else end_of(latest.isoformat())


def with_times(listed: bytes, stages: Stages) -> bytes:
    """JSON of an answer with `took_ms` as its last key, which tells the time of writing the others too."""
    took = encode_json({stage: round(seconds * 1e3, 3) for stage, seconds in stages.seconds.items()})
    return b"".join((listed[:-1], b',"took_ms":', took, b"}"))


def _envelope(raw: dict[str, Any]) -> tuple[str, int | None]:
    """Take the request's id and `top_k` out of the body."""
    given, top_k = raw.pop("id", None), raw.pop("top_k", None)
    if given is not None and not (isinstance(given, str) and 0 < len(given) <= LONGEST_ID):
        raise ConfigError(f"id: expected text of 1 to {LONGEST_ID} characters. Leave it out for one of ours.")
    if top_k is not None and not (isinstance(top_k, int) and not isinstance(top_k, bool) and top_k >= 1):
        raise ConfigError(f"top_k: expected a whole number from 1 on, got {top_k!r}. Leave it out for all candidates.")
    return given or secrets.token_hex(8), top_k


def _respond(
    ranker: Ranker,
    asked: Asked,
    request: Request,
    encoded: EncodedRequest,
    scores_NH: np.ndarray,
    order: np.ndarray,
    variant: str,
) -> Answer:
    names, stages = ranker.tasks, asked.stages
    items = ids_at(request.candidates, order)
    best_HN = scores_NH[order].T.tolist()
    if names:
        tasks = (dict(zip(names, of, strict=True)) for of in zip(*best_HN[1:], strict=True))
        ranked: list[Listed] = list(map(ListedWithTasks, items, best_HN[0], tasks))
    else:
        ranked = list(map(Listed, items, best_HN[0]))
    content = {
        "request_id": asked.request_id,
        "model_version": ranker.model_version,
        "variant": variant,
        "state": "ok",
        "ranked": ranked,
        "unknown": {"candidates": len(encoded.unknown_candidates), "history": encoded.unknown_history},
        "missing": encoded.missing,
    }
    unusual = ranker.unusual(encoded)
    if unusual:
        content["unusual"] = unusual
    listed = encode_json(content)
    stages.end("respond")
    body = with_times(listed, stages)
    version, scores = ranker.model_version, scores_NH[:, 0]
    known = asked.raw, request, encoded, order, scores, stages.seconds, variant, unusual, asked.body
    return Answer(body, asked.request_id, version, *known)
