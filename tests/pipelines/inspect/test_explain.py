"""`explain`: scores are those that the bundle of the run serves, and candidates have the ids of the request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from safetensors.torch import save_file

from ctr.config import ModelConfig, Preset
from features.errors import ConfigError
from features.store.feature_set import MANIFEST
from pipelines.inspect.explain import explain_request
from pipelines.workspace import Workspace
from tests.trained import built_feature_set, random_model

REQUEST = {
    "user": "u1",
    "time": 1_000_000,
    "context": {"device": "phone", "load": 1.0},
    "history": [{"item": 101, "time": 990_000, "clicked": 1}, {"item": 102, "time": 990_500, "clicked": 0}],
    "candidates": [103, 977, 105, 988],
}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """With one finished run of a random model."""
    root = tmp_path_factory.mktemp("work")
    feature_set = built_feature_set(root)
    preset = Preset(model=ModelConfig(embedding_dim=4, vector_dim=4, attention_dim=8))
    run = root / "runs" / "20260101-000000-shop-abcd"
    run.mkdir(parents=True)
    config = {
        "preset": preset.model_dump(mode="json"),
        "feature_set": str(feature_set.path),
        "contract_fingerprint": feature_set.manifest.fingerprint,
    }
    (run / "config.json").write_text(json.dumps(config))
    (run / "metrics.json").write_text("{}")
    save_file(random_model(feature_set, preset.model).state_dict(), run / "model.safetensors")
    (root / "request.json").write_text(json.dumps(REQUEST))
    return Workspace(root)


def explained(workspace: Workspace, console: Console | None = None) -> list[dict[str, Any]]:
    request = workspace.root / "request.json"
    found = explain_request("latest", request, 4, workspace, console or Console(quiet=True))
    return list(found["explained"])


def test_a_candidate_without_a_row_has_the_id_that_the_request_gives_it(workspace: Workspace) -> None:
    console = Console(record=True, width=200)
    found = explained(workspace, console)
    assert {one["item"] for one in found} == {103, 977, 105, 988}
    assert "item 977" in console.export_text()


def test_a_request_in_another_encoding_is_refused_with_the_way_out(workspace: Workspace, tmp_path: Path) -> None:
    request = tmp_path / "latin.json"
    request.write_bytes('{"user": "café"}'.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin\.json: cannot be read as JSON: 'utf-8' codec can't decode"):
        explain_request("latest", request, 4, workspace, Console(quiet=True))


def test_scores_beside_drawn_negatives_are_those_of_the_whole_log(workspace: Workspace) -> None:
    (manifest,) = (workspace.root / "feature_sets").glob(f"*/*/{MANIFEST}")
    as_learned = {one["item"]: one["score"] for one in explained(workspace)}
    _draw_negatives(manifest, rate=0.1)
    served = {one["item"]: one["score"] for one in explained(workspace)}
    assert served == pytest.approx({item: p / (p + (1 - p) / 0.1) for item, p in as_learned.items()})


def _draw_negatives(manifest: Path, rate: float) -> None:
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(content | {"sampling": {"drawn": 100, "per_positive": 4, "rate": rate}}))
