"""Small bundles of one shop, and a request for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from ctr.config import ModelConfig
from ctr.export.export_bundle import ExportResult, Extras, export_bundle
from ctr.model.click_model import ClickModel
from ctr.serving.answering.versions import PointerSource
from ctr.serving.server.app import Server
from ctr.serving.settings import QueueSettings, ServeConfig
from features.store.feature_set import FeatureSet
from tests.trained import built_feature_set, random_model

REQUEST: dict[str, Any] = {
    "user": "u3",
    "context": {"device": "desk", "load": 2.5},
    "history": [{"item": 101, "label": 1}, {"item": 107, "label": 0}],
    "candidates": [110, 111, 112, 113, 114],
}


def export(
    model: ClickModel, feature_set: FeatureSet, out: Path, version: str = "run-1", scorer: bool = False
) -> ExportResult:
    return export_bundle(
        model,
        feature_set,
        out,
        model_version=version,
        architecture="qin",
        metrics={"test": {"auc": 0.71, "auc_low": 0.69, "log_loss": 0.512}},
        controls={"popularity": {"auc": 0.6}},
        git_revision="0123abcd",
        extras=Extras(scorer=scorer),
    )


def two_bundles(folder: Path) -> Path:
    """`bundles/first` and `bundles/second` below the folder; returns `bundles`."""
    (folder / "shop").mkdir()
    feature_set = built_feature_set(folder / "shop")
    for seed, name in enumerate(("first", "second")):
        model = random_model(feature_set, ModelConfig(embedding_dim=4, attention_dim=4), seed=seed)
        export(model, feature_set, folder / "bundles" / name, version=name)
    return folder / "bundles"


def client_of(folder: Path, token: str | None = None, **config: Any) -> tuple[TestClient, Server]:
    """A server that follows `CURRENT` of a folder, and who asks it."""
    server = Server(PointerSource(folder / "CURRENT"), serve_config(**config), token)
    return TestClient(server.app()), server


def serve_config(**config: Any) -> ServeConfig:
    """Settings of a test's server: a machine busy with other tests must not make a request miss its deadline."""
    return ServeConfig(**{"poll_seconds": 60, "queue": QueueSettings(deadline_ms=60_000), **config})
