"""The Open Inference Protocol: scores of encoded tensors, limits and refusals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from ctr.serving.ranker import Ranker, graph_inputs
from ctr.serving.server.inference import whole_number
from features.encoding.request import Limits, parse_request
from tests.ctr.serving.shop import REQUEST, client_of


@pytest.fixture
def shop(bundles: Path, tmp_path: Path) -> Path:
    return shutil.copytree(bundles, tmp_path / "shop")


@pytest.fixture
def client(shop: Path) -> Iterator[TestClient]:
    with client_of(shop)[0] as client:
        yield client


@pytest.mark.parametrize(
    ("text", "number"),
    [("0", 0), ("007", 7), ("9" * 9, 999_999_999), ("9" * 10, None), ("9" * 5000, None)]
    + [(text, None) for text in ("", "-1", "+1", " 1", "1.5", "1_0", "x", "²", "٣")],
)
def test_a_number_is_up_to_nine_digits(text, number):
    assert whole_number(text) == number


class TestOpenInference:
    def feed(self, shop: Path) -> dict[str, np.ndarray]:
        ranker = Ranker.load(shop / "first")
        encoded = ranker.encoder.encode_request(parse_request(REQUEST, ranker.encoder.contract))
        return {node.name: graph_inputs(encoded)[node.name] for node in ranker.inputs}

    def inputs(self, feed: dict[str, np.ndarray]) -> list[dict[str, Any]]:
        return [
            {
                "name": name,
                "shape": list(values.shape),
                "datatype": "FP32" if values.dtype.kind == "f" else "INT64",
                "data": [None if isinstance(x, float) and x != x else x for x in values.ravel().tolist()],
            }
            for name, values in feed.items()
        ]

    def test_it_gives_the_scores_of_the_ranker(self, client, shop):
        name = client.get("/v2").json()["name"]
        assert name == "quadrank" and client.get("/v2/health/ready").json()["ready"]
        model = Ranker.load(shop / "first").bundle.manifest.name
        described, feed = client.get(f"/v2/models/{model}").json(), self.feed(shop)
        assert {entry["name"] for entry in described["inputs"]} == set(feed)
        answer = client.post(f"/v2/models/{model}/infer", json={"id": "7", "inputs": self.inputs(feed)})
        assert answer.status_code == 200, answer.text
        (output,) = answer.json()["outputs"]
        ranked = Ranker.load(shop / "first").rank(REQUEST).ranked
        by_item = {one.item: one.score for one in ranked}
        assert output["data"] == pytest.approx([by_item[item] for item in REQUEST["candidates"]])
        assert answer.json()["id"] == "7"

    @pytest.mark.parametrize("change", ["drop", "negative", "shape", "type", "beyond"])
    def test_wrong_tensors_are_refused(self, client, shop, change):
        model = Ranker.load(shop / "first").bundle.manifest.name
        inputs = self.inputs(self.feed(shop))
        candidate = next(entry for entry in inputs if entry["name"] == "candidate_item")
        match change:
            case "drop":
                inputs.remove(candidate)
            case "negative":
                candidate["data"][0] = -1
            case "shape":
                candidate["shape"] = [4]
            case "type":
                candidate["datatype"] = "BOOL"
            case "beyond":
                candidate["data"][0] = 10**6
        answer = client.post(f"/v2/models/{model}/infer", json={"inputs": inputs})
        assert answer.status_code == 400 and "inputs" in answer.json()["error"]

    @pytest.mark.parametrize("over", ["candidate_item", "history_item", None])
    def test_limits_hold_for_encoded_requests_too(self, shop, over):
        feed = self.feed(shop)
        limits = Limits(
            max_candidates=len(feed["candidate_item"]) - (over == "candidate_item"),
            max_history=len(feed["history_item"]) - (over == "history_item"),
        )
        client, server = client_of(shop, limits=limits)
        with client:
            model = server.versions.current.bundle.manifest.name
            answer = client.post(f"/v2/models/{model}/infer", json={"inputs": self.inputs(feed)})
        assert answer.status_code == (200 if over is None else 400), answer.text
        if over is not None:
            assert f": {len(feed[over])} entries, at most {len(feed[over]) - 1} are allowed" in answer.text

    def test_what_onnx_runtime_says_is_for_the_log_alone(self, client, shop, caplog):
        model = Ranker.load(shop / "first").bundle.manifest.name
        inputs = self.inputs(self.feed(shop))
        for entry in inputs:
            if entry["name"] != "history_item" and entry["name"].startswith("history_"):
                entry["shape"][0] -= 1
                entry["data"] = entry["data"][: int(np.prod(entry["shape"]))]
        answer = client.post(f"/v2/models/{model}/infer", json={"inputs": inputs})
        assert answer.status_code == 400
        assert answer.json()["error"] == (
            "inputs: the model cannot read them together. Compare types and shapes with GET /v2/models/NAME, "
            "lengths of `candidate_…` and `history_…` with each other, and indices with the tables of the bundle."
        )
        assert "ONNX" in caplog.text

    @pytest.mark.parametrize(
        "body",
        [
            {"inputs": 3},
            {"inputs": [3]},
            {"inputs": [{"name": 3}]},
            {"inputs": [], "outputs": 3},
            {"inputs": [], "parameters": [1]},
            {"inputs": [{"name": "candidate_item", "datatype": "INT64", "shape": [1], "data": [1.7]}]},
            {"inputs": [{"name": "candidate_item", "datatype": "INT64", "shape": [1], "data": ["1"]}]},
            {"inputs": [{"name": "candidate_item", "datatype": "INT64", "shape": [1], "data": [2**63]}]},
            {"inputs": [{"name": "candidate_item", "datatype": "INT64", "shape": [1], "data": {"a": 1}}]},
            {"inputs": [{"name": "candidate_item", "datatype": "INT64", "shape": [1], "parameters": [1]}]},
            {"inputs": [{"name": "a", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": "x"}}]},
        ],
    )
    def test_what_is_no_tensor_is_refused(self, client, shop, body):
        model = Ranker.load(shop / "first").bundle.manifest.name
        answer = client.post(f"/v2/models/{model}/infer", json=body)
        assert answer.status_code == 400, answer.text

    @pytest.mark.parametrize("length", ["9" * 5000, "1.5", ""])
    def test_a_length_of_the_json_that_is_none_is_refused(self, client, shop, length):
        model = Ranker.load(shop / "first").bundle.manifest.name
        headers = {"inference-header-content-length": length}
        answer = client.post(f"/v2/models/{model}/infer", content=b"{}", headers=headers)
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"].startswith("inference-header-content-length: expected a number of bytes")

    def test_numbers_are_never_rounded_to_indices(self, client, shop):
        model = Ranker.load(shop / "first").bundle.manifest.name
        inputs = self.inputs(self.feed(shop))
        next(entry for entry in inputs if entry["name"] == "candidate_item")["data"][0] += 0.5
        answer = client.post(f"/v2/models/{model}/infer", json={"inputs": inputs})
        assert answer.status_code == 400 and "candidate_item" in answer.json()["error"]

    def test_binary_tensors_give_the_same_bytes(self, client, shop):
        model = Ranker.load(shop / "first").bundle.manifest.name
        feed = self.feed(shop)
        inputs = [
            {
                "name": name,
                "shape": list(values.shape),
                "datatype": "FP32" if values.dtype.kind == "f" else "INT64",
                "parameters": {"binary_data_size": values.nbytes},
            }
            for name, values in feed.items()
        ]
        head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
        body = head + b"".join(values.tobytes() for values in feed.values())
        answer = client.post(
            f"/v2/models/{model}/infer", content=body, headers={"inference-header-content-length": str(len(head))}
        )
        length = int(answer.headers["inference-header-content-length"])
        (output,) = json.loads(answer.content[:length])["outputs"]
        assert output["parameters"] == {"binary_data_size": 4 * len(REQUEST["candidates"])}
        ranked = {entry.item: entry.score for entry in Ranker.load(shop / "first").rank(REQUEST).ranked}
        scores = np.frombuffer(answer.content[length:], np.float32)
        assert scores.tolist() == [pytest.approx(ranked[item]) for item in REQUEST["candidates"]]

    def test_a_tensor_given_twice_and_bytes_of_none_are_refused(self, client, shop):
        model = Ranker.load(shop / "first").bundle.manifest.name
        inputs = self.inputs(self.feed(shop))
        twice = client.post(f"/v2/models/{model}/infer", json={"inputs": [*inputs, inputs[0]]})
        assert twice.status_code == 400
        assert f"{inputs[0]['name']!r}: is given twice" in twice.json()["error"]
        head = json.dumps({"inputs": inputs}).encode()
        headers = {"inference-header-content-length": str(len(head))}
        more = client.post(f"/v2/models/{model}/infer", content=head + bytes(3), headers=headers)
        assert more.status_code == 400
        assert more.json()["error"].startswith("body: 3 bytes more than the inputs' `binary_data_size`")

    def test_another_model_is_not_found(self, client):
        assert client.get("/v2/models/other").status_code == 404
