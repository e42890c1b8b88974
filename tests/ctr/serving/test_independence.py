"""A candidate's score depends on nothing of the other candidates: not how many, which, or in which order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ctr.serving.ranker import Ranker, graph_inputs
from features.encoding.request import parse_request
from tests.ctr.serving.shop import REQUEST

CANDIDATES = [*range(100, 140), 999]
LOGITS = 1e-5


def logits(ranker: Ranker, candidates: list[Any]) -> np.ndarray:
    """Of all outputs, float64 [N, 1 + tasks], in the order of the candidates."""
    request = parse_request(REQUEST | {"time": 1_000_000, "candidates": candidates}, ranker.encoder.contract)
    scores = ranker.scores(ranker.encode(request)).astype(np.float64)
    return np.log(scores / (1 - scores))


@pytest.fixture(scope="module")
def together(ranker: Ranker) -> np.ndarray:
    found = logits(ranker, CANDIDATES)
    assert np.ptp(found[:, 0]) > 0.1, "else equal scores would prove nothing"
    return found


def test_alone(ranker, together):
    alone = np.concatenate([logits(ranker, [item]) for item in CANDIDATES])
    assert np.abs(alone - together).max() <= LOGITS


def test_in_another_order(ranker, together):
    order = np.random.default_rng(0).permutation(len(CANDIDATES))
    assert np.abs(logits(ranker, [CANDIDATES[i] for i in order]) - together[order]).max() <= LOGITS


def test_among_many_and_twice(ranker, together):
    many = (CANDIDATES * 25)[:1000]
    wanted = np.tile(together, (25, 1))[:1000]
    assert np.abs(logits(ranker, many) - wanted).max() <= LOGITS


@pytest.mark.parametrize("padding", [1, 23, 500])
def test_before_padding(ranker, together, padding):
    """A client of the Open Inference Protocol may fill its list up to a fixed length, with row 0."""
    request = parse_request(REQUEST | {"time": 1_000_000, "candidates": CANDIDATES}, ranker.encoder.contract)
    feed = graph_inputs(ranker.encode(request))
    feed = {node.name: feed[node.name] for node in ranker.inputs}
    for name, values in feed.items():
        if name.startswith("candidate_"):
            feed[name] = np.concatenate([values, np.zeros((padding, *values.shape[1:]), values.dtype)])
    score = ranker.run(feed)["score"][: len(CANDIDATES)].astype(np.float64)
    assert np.abs(np.log(score / (1 - score)) - together[:, 0]).max() <= LOGITS
