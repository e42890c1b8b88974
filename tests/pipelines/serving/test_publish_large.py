"""Item tables above 2 GB, more than one protobuf message holds, in each layout that is published."""

from __future__ import annotations

from pathlib import Path

import mlflow
import onnx
import pytest
from onnx.external_data_helper import set_external_data
from rich.console import Console

from ctr.config import ModelConfig
from ctr.serving.bundle import ITEM_TABLE, RANKER, open_bundle, seal
from pipelines.serving.publish import publish_bundle
from tests.ctr.serving.shop import export
from tests.trained import built_feature_set, random_model

BYTES = 2**31 + 2**20


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose item table has many rows of zeros behind its own; its file is sparse."""
    folder = tmp_path_factory.mktemp("large")
    feature_set = built_feature_set(folder)
    model = random_model(feature_set, ModelConfig(embedding_dim=16, attention_dim=4, match_features=True), seed=2)
    bundle = export(model, feature_set, folder / "bundle").path
    manifest = open_bundle(bundle).manifest
    graph = onnx.load(bundle / RANKER, load_external_data=False)
    (table,) = (tensor for tensor in graph.graph.initializer if tensor.name == "item_table")
    table.dims[0] = BYTES // (4 * table.dims[1])
    size = 4 * table.dims[0] * table.dims[1]
    assert size > 2**31
    table.raw_data = b" "
    set_external_data(table, ITEM_TABLE, 0, size)
    table.ClearField("raw_data")
    onnx.save(graph, bundle / RANKER)
    with (bundle / ITEM_TABLE).open("r+b") as file:
        file.truncate(size)
    seal(bundle, manifest)
    return bundle


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("layout", ["folder", "triton", "mlflow"])
def test_a_table_above_2_gb_is_published(large: Path, tmp_path: Path, layout: str) -> None:
    summary = publish_bundle(large, tmp_path / "to", layout, Console(quiet=True))
    assert summary["bytes"] > 2**31 and 0 < summary["max_logit_difference"] < 1e-5
    if layout == "mlflow":
        graph = mlflow.onnx.load_model(str(tmp_path / "to")).graph
        assert max(len(tensor.raw_data) for tensor in graph.initializer) == (large / ITEM_TABLE).stat().st_size
    for file in sorted(tmp_path.rglob(ITEM_TABLE)):
        file.unlink()  # gigabytes that pytest would keep
