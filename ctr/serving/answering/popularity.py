"""The answer where the model cannot: candidates by popularity, without features and without the graph.

Shapes: N candidates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ctr.serving.answering.answers import Listed, Stages, encode_json, read_request, with_times
from ctr.serving.ranker import Ranker
from features.encoding.raw_values import ids_at
from features.encoding.request import Limits, Request, parse_request


@dataclass(frozen=True)
class PopularityAnswer:
    """JSON of an answer by popularity, and the seconds that its stages took."""

    body: bytes
    stages: dict[str, float]


def popularity_answer(ranker: Ranker, body: bytes, limits: Limits) -> PopularityAnswer:
    """Rank what a body asks for by popularity; scores are null.

    Args:
        ranker: of the version whose counters say what is popular.
        body: JSON.
        limits: largest request.

    Raises:
        ConfigError: the body is no legal request of this bundle.
    """
    stages = Stages()
    asked = read_request(body)
    request = parse_request(asked.raw, ranker.encoder.contract, limits)
    stages.end("decode")
    popularity_N = popularity(ranker, request)
    # What has no value (NaN) stands last.
    order = np.arange(len(request.candidates)) if popularity_N is None else np.argsort(-popularity_N, kind="stable")
    content = {
        "request_id": asked.request_id,
        "model_version": ranker.model_version,
        "state": "fallback",
        "ranked": [Listed(item, None) for item in ids_at(request.candidates, order[: asked.top_k])],
        "unknown": {},
        "missing": {},
    }
    listed = encode_json(content)
    stages.end("respond")
    return PopularityAnswer(with_times(listed, stages), stages.seconds)


def popularity(ranker: Ranker, request: Request) -> np.ndarray | None:
    """Each candidate's popularity, float64 [N]: what the request says of the counter, else the newest that is known.

    The counter is the contract's first rate of items, else its first count of them; None where it has none.

    Raises:
        ConfigError: ids of another type than the log's.
    """
    contract = ranker.encoder.contract
    of_items = [
        name
        for name, counter in contract.counters.items()
        if counter.of == "item" and counter.value in ("count", "rate") and counter.label is None
    ]
    if not of_items:
        return None
    chosen = min(of_items, key=lambda name: contract.counters[name].value != "rate")
    known_N = ranker.counters.items[chosen][ranker.encoder.item_rows("candidates", request.candidates)].astype(
        np.float64
    )
    if chosen not in request.candidate_columns:
        return known_N
    given_N = np.array(request.candidate_columns[chosen], np.float64)  # None is NaN
    return np.where(np.isnan(given_N), known_N, given_N)
