"""Versions that change under load, and clients that speak the Open Inference Protocol over a socket."""

from __future__ import annotations

import http.client
import json
import shutil
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton

from ctr.serving.answering.versions import AliasSource, PointerSource, Source
from ctr.serving.ranker import Ranker, graph_inputs
from ctr.serving.server.app import Server
from features.encoding.request import parse_request
from features.store.pointer import point_at
from tests.ctr.serving.server.over_http import SECONDS, serving
from tests.ctr.serving.shop import REQUEST, serve_config
from tests.ctr.serving.tracking import ALIAS, tracking_server


def flip_under_load(
    folder: Path, source: Source, flip_to: Callable[[str], object], flips: int, threads: int
) -> dict[str, int]:
    """Name one version and the other while threads ask; how many answers each gave, all with its own scores.

    Nothing but the server's own thread looks which is named.
    """
    expected = {
        name: {one.item: one.score for one in Ranker.load(folder / name).rank(REQUEST).ranked}
        for name in ("first", "second")
    }
    server = Server(source, serve_config(poll_seconds=0.01))
    given, wrong, end = dict.fromkeys(expected, 0), list[str](), threading.Event()
    lock, asked = threading.Lock(), threading.Semaphore(0)

    def ask(port: int) -> None:
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
        while not end.is_set():
            client.request("POST", "/v1/rank", json.dumps(REQUEST))
            answer = client.getresponse()
            content = json.loads(answer.read())
            found = {entry["item"]: entry["score"] for entry in content.get("ranked", [])}
            with lock:
                if answer.status != 200 or found != pytest.approx(expected[content["model_version"]]):
                    wrong.append(f"{answer.status} {content}")
                else:
                    given[content["model_version"]] += 1
            asked.release()
        client.close()

    with serving(server) as port:
        askers = [threading.Thread(target=ask, args=(port,)) for _ in range(threads)]
        for asker in askers:
            asker.start()
        for flip in range(flips):
            version = ("second", "first")[flip % 2]
            flip_to(version)
            latest = time.monotonic() + SECONDS
            while server.versions.current.model_version != version:
                assert time.monotonic() < latest, "it does not follow"
                time.sleep(0.005)
            while asked.acquire(blocking=False):
                continue  # an answer of the version before does not count
            for _ in range(2 * threads):  # each thread has begun at most one of them before
                assert asked.acquire(timeout=SECONDS)
        end.set()
        for asker in askers:
            asker.join(SECONDS)
    assert wrong == []
    return given


@pytest.fixture
def shop(bundles: Path, tmp_path: Path) -> Path:
    return shutil.copytree(bundles, tmp_path / "shop")


def test_every_answer_has_the_scores_of_the_version_that_it_names(shop):
    flip_to = partial(point_at, shop)
    given = flip_under_load(shop, PointerSource(shop / "CURRENT"), flip_to, flips=6, threads=4)
    assert min(given.values()) > 6


def flip_the_alias_under_load(folder: Path, flips: int, threads: int) -> dict[str, int]:
    """As `flip_under_load`, by the alias of a tracking server whose answers are cut before each flip back."""
    with tracking_server() as tracking:

        def flip_to(version: str) -> None:
            if version == "first":
                tracking.answers[ALIAS] = b"cut"
                latest, told = time.monotonic() + SECONDS, len(tracking.told)
                while len(tracking.told) < told + 2:
                    assert time.monotonic() < latest, "it asks no more"
                    time.sleep(0.005)
            tracking.name(version)

        tracking.name("first")
        source = AliasSource(tracking.address, "shop", "champion", folder)
        return flip_under_load(folder, source, flip_to, flips, threads)


def test_every_answer_has_the_scores_of_the_version_that_an_alias_names(shop):
    given = flip_the_alias_under_load(shop, flips=6, threads=4)
    assert min(given.values()) > 6


@pytest.mark.slow
def test_a_hundred_flips_of_an_alias_under_load(shop):
    given = flip_the_alias_under_load(shop, flips=100, threads=8)
    assert min(given.values()) > 100


@pytest.fixture(scope="module")
def ranker(bundles: Path) -> Ranker:
    return Ranker.load(bundles / "first")


def feed_of(ranker: Ranker) -> dict[str, np.ndarray]:
    encoded = ranker.encode(parse_request(REQUEST, ranker.encoder.contract))
    feed = graph_inputs(encoded)
    return {node.name: feed[node.name] for node in ranker.inputs}


@pytest.fixture(scope="module")
def client(bundles: Path) -> Any:
    server = Server(PointerSource(bundles / "CURRENT"), serve_config())
    with serving(server) as port:
        client = triton.InferenceServerClient(f"127.0.0.1:{port}", connection_timeout=SECONDS, network_timeout=SECONDS)
        yield client
        client.close()


def test_tritonclient_finds_server_and_model(client, ranker):
    name, version = ranker.bundle.manifest.name, ranker.model_version
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready(name) and client.is_model_ready(name, version) and not client.is_model_ready("other")
    assert client.get_server_metadata()["name"] == "quadrank"
    described = client.get_model_metadata(name)
    assert described["versions"] == [version]
    assert {entry["name"] for entry in described["inputs"]} == {node.name for node in ranker.inputs}


@pytest.mark.parametrize("binary", [False, True])
def test_tritonclient_gets_the_scores_of_the_ranker(client, ranker, binary):
    inputs = []
    for name, values in feed_of(ranker).items():
        # A missing number is NaN, which the client cannot write as JSON; as zeros both sides read the same.
        values = np.nan_to_num(values) if values.dtype.kind == "f" else values
        tensor = triton.InferInput(name, list(values.shape), "FP32" if values.dtype.kind == "f" else "INT64")
        tensor.set_data_from_numpy(values, binary_data=binary)
        inputs.append(tensor)
    wanted = triton.InferRequestedOutput("score", binary_data=binary)
    answer = client.infer(ranker.bundle.manifest.name, inputs, outputs=[wanted], request_id="7")
    feed = {name: np.nan_to_num(v) if v.dtype.kind == "f" else v for name, v in feed_of(ranker).items()}
    assert answer.as_numpy("score") == pytest.approx(ranker.run(feed)["score"], abs=1e-6)
    head = answer.get_response()
    assert (head["id"], head["model_version"]) == ("7", "first")


def test_tritonclient_is_told_what_is_wrong(client, ranker):
    tensor = triton.InferInput("candidate_item", [1], "INT64")
    tensor.set_data_from_numpy(np.array([-1]))
    with pytest.raises(triton.InferenceServerException, match="is missing"):
        client.infer(ranker.bundle.manifest.name, [tensor])
