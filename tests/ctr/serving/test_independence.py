"""A candidate's score depends on nothing of the other candidates: not how many, which, or in which order."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from ctr.serving.items.new_items import items_of_json
from ctr.serving.items.upsert import upsert_items
from ctr.serving.ranker import Ranker, graph_inputs
from features.encoding.request import parse_request
from features.errors import ConfigError
from tests.ctr.serving.shop import REQUEST

CANDIDATES = [*range(100, 140), 999]
LOGITS = 1e-5


def logits(ranker: Ranker, candidates: list[Any]) -> np.ndarray:
    """Of all outputs, float64 [N, 1 + tasks], in the order of the candidates."""
    request = parse_request(REQUEST | {"time": 1_000_000, "candidates": candidates}, ranker.encoder.contract)
    scores = ranker.scores(ranker.encode(request)).astype(np.float64)
    return np.log(scores / (1 - scores))


class Counted:
    """A session that keeps the number of candidates of each run."""

    def __init__(self, real: Any) -> None:
        self.get_inputs, self.get_outputs, self._run = real.get_inputs, real.get_outputs, real.run
        self.get_overridable_initializers = real.get_overridable_initializers
        self.runs: list[int] = []

    def run(self, names: None, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        self.runs.append(len(feed["candidate_item"]))
        return self._run(names, feed)


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


@pytest.mark.parametrize(
    ("candidates", "runs"),
    [(1, [1]), (256, [256]), (257, [129, 128]), (512, [256, 256]), (1000, [250, 250, 250, 250])],
)
def test_so_many_at_once_as_a_cache_holds(ranker, together, candidates, runs):
    """A run of the graph has 256 candidates a thread at most, all runs about as many, and each candidate is in one."""
    counted = Counted(ranker._session)
    served = Ranker(ranker.bundle, ranker.encoder, counted, ranker.limits)
    many = (CANDIDATES * 25)[:candidates]
    wanted = np.tile(together, (25, 1))[:candidates]
    assert np.abs(logits(served, many) - wanted).max() <= LOGITS
    assert counted.runs == runs


def test_two_threads_take_twice_as_many(exported, ranker, monkeypatch):
    counted = Counted(ranker._session)
    monkeypatch.setattr("ctr.serving.ranker.open_session", lambda graph, threads: counted)
    served = Ranker.load(exported.path, threads=2)
    counted.runs.clear()
    logits(served.with_rows(served.encoder, np.zeros((1, ranker.row_width), np.float32)), (CANDIDATES * 25)[:600])
    assert counted.runs == [300, 300]


def test_each_run_of_two_threads_reads_upserted_items(exported, ranker, tmp_path, monkeypatch):
    """Their rows come with the request: a run without them would read the zeros that the graph holds."""
    given = {"items": [{"item": 4711, "columns": {"genre": "crime"}}]}
    made = upsert_items(exported.path, lambda encoder: items_of_json(encoder, given, 10), tmp_path / "new")
    counted = Counted(ranker._session)
    monkeypatch.setattr("ctr.serving.ranker.open_session", lambda graph, threads: counted)
    served = Ranker.load(made.path, threads=2)
    alone = logits(served, [4711])
    counted.runs.clear()
    assert np.abs(logits(served, [4711] * 600) - alone).max() <= LOGITS
    assert counted.runs == [300, 300]


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


@pytest.mark.parametrize("shape", [(), (3,), (599,), (600, 1)])
def test_inputs_of_another_length_than_the_candidates(ranker, shape):
    request = parse_request(REQUEST | {"candidates": (CANDIDATES * 25)[:600]}, ranker.encoder.contract)
    feed = graph_inputs(ranker.encode(request))
    feed = {node.name: feed[node.name] for node in ranker.inputs}
    number = next(name for name in feed if name.startswith("candidate_") and name != "candidate_item")
    for name in ("candidate_item", number):
        wrong = feed | {name: np.ones(shape, feed[name].dtype)}
        said = f"inputs: '{number}' has shape {list(wrong[number].shape)}, and 'candidate_item' "
        with pytest.raises(ConfigError, match=re.escape(said)):
            ranker.run(wrong)
