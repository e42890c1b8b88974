"""The item table is a file of its own, which is mapped and shared by processes, also above 2 GB."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import polars as pl
import pytest
import torch

from ctr.config import ModelConfig
from ctr.data.feature_tables import frozen_tables
from ctr.export.export_bundle import ExportResult, Extras, export_bundle
from ctr.export.precision.put import VariantChoice
from ctr.export.precision.tables import Block, reduce_table
from ctr.model.click_model import ClickModel
from ctr.serving import verified
from ctr.serving.bundle import ITEM_TABLE, RANKER, open_bundle
from ctr.serving.items.new_items import items_of_json
from ctr.serving.items.upsert import upsert_items
from ctr.serving.ranker import Ranker, graph_inputs, open_session
from features.build.build import build_feature_set
from features.contract.contract import Contract
from features.encoding.request import parse_request
from features.store.feature_set import FeatureSet
from tests.ctr.serving.mapped import held

TWO_GB = 2**31
ITEMS = 440_000
COLUMNS = ("c0", "c1", "c2", "c3")


def test_two_processes_share_the_pages_of_the_table(exported: ExportResult) -> None:
    size = (exported.path / ITEM_TABLE).stat().st_size
    for one in held(exported.path, 2):
        assert one["Rss"] >= size and one["Pss"] <= one["Rss"] / 2 and one["Anonymous"] == 0


def test_no_graph_holds_the_table(exported: ExportResult) -> None:
    table = (exported.path / ITEM_TABLE).stat().st_size
    (held_outside,) = (
        one
        for one in onnx.load(exported.path / RANKER, load_external_data=False).graph.initializer
        if one.external_data
    )
    place = {entry.key: entry.value for entry in held_outside.external_data}
    assert held_outside.name == "item_table" and not held_outside.raw_data and not held_outside.float_data
    assert place["location"] == ITEM_TABLE and int(place["length"]) == table and int(place.get("offset", 0)) == 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_table_above_two_gb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    if shutil.disk_usage(tmp_path).free < 8 * 2**30:
        pytest.skip("needs 8 GiB of disk")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    feature_set = wide_feature_set(tmp_path)
    torch.manual_seed(3)
    sizes = {"embedding_dim": 256, "attention_dim": 8, "tower": "mlp", "hidden": (16,)}
    model = ClickModel(ModelConfig(**sizes), feature_set.schema)
    model.attach(frozen_tables(feature_set))
    with Peak() as peak:
        result = export_bundle(
            model.eval(),
            feature_set,
            tmp_path / "bundle",
            model_version="run-1",
            architecture="qin",
            metrics={},
            controls={},
            git_revision="0123abcd",
            extras=Extras(variant=VariantChoice("int8_products", 1.0, rows=20)),
        )
    path = result.path
    size = (path / ITEM_TABLE).stat().st_size
    assert size > TWO_GB and (path / RANKER).stat().st_size < 2**28
    # The table, and at most one copy of it while it is put together.
    assert peak.grown < 2.2 * size

    with monkeypatch.context() as always:
        always.setenv("QUADRANK_VERIFY", "always")
        cold = held(path, 1)[0]["seconds"]
    time.sleep(2)  # until nothing more can change unnoticed
    open_bundle(path)
    two = held(path, 2)
    for one in two:
        assert one["Rss"] >= size and one["Pss"] <= 0.55 * one["Rss"] and one["anonymous"] < 0.2 * size

    raw = {"items": [{"item": 999_999_999, "columns": dict.fromkeys(COLUMNS, "v3")}]}
    upserted = upsert_items(path, lambda encoder: items_of_json(encoder, raw, 10)).path
    read: list[Path] = []
    real = verified.sha256_of
    monkeypatch.setattr(verified, "sha256_of", lambda file: read.append(file) or real(file))
    before, after = Ranker.load(path), Ranker.load(upserted)
    assert ITEM_TABLE not in {file.name for file in read}
    last = ITEMS - 1
    request = {"candidates": [last, 999_999_999], "history": [last]}
    assert before.rank(request).unknown_candidates == (999_999_999,)
    assert not after.rank(request).unknown_candidates

    table_ID = np.memmap(path / ITEM_TABLE, np.float32, mode="r").reshape(feature_set.schema.items, -1)
    feed = graph_inputs(before.encode(parse_request(request, before.encoder.contract)))
    feed = {node.name: feed[node.name] for node in before.inputs}
    for bits, dtype in (("fp16", np.float16), ("int8", np.int8)):
        target = tmp_path / bits
        target.mkdir()
        reduce_table(path, target, [Block(table_ID.shape[1], False)], bits)
        found_D = np.memmap(target / ITEM_TABLE, dtype, mode="r")[: table_ID.size].reshape(table_ID.shape)[-1]
        scale = 1 if bits == "fp16" else np.abs(table_ID[-1]).max() / 127
        np.testing.assert_allclose(found_D * scale, table_ID[-1], atol=max(scale / 1.9, 1e-3) if scale != 1 else 1e-3)
        (score_N,) = open_session(target / RANKER).run(None, feed)
        np.testing.assert_allclose(score_N, before.run(feed)["score"], atol=0.01)
        shutil.rmtree(target)
    with capsys.disabled():
        print(
            f"\n{size:,} bytes: the export holds {peak.grown / size:.2f} tables; a start that reads all takes "
            f"{cold:.2f} s, "
            f"{two[0]['seconds']:.2f} s once the file is verified; each of two processes holds {two[0]}"
        )


class Peak:
    """How much more memory, without files, this process holds at most inside the block than before it, in bytes."""

    def __enter__(self) -> Peak:
        self._before, self.grown, self._over = self._anonymous(), 0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.05):
            self.grown = max(self.grown, self._anonymous() - self._before)

    @staticmethod
    def _anonymous() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def wide_feature_set(folder: Path) -> FeatureSet:
    """So many items that five columns of 256 numbers for each take more than 2 GB; few rows."""
    raw = folder / "raw"
    raw.mkdir()
    draw = np.random.default_rng(0)
    pl.DataFrame(
        {
            "user": draw.integers(20, size=600),
            "item": draw.integers(ITEMS, size=600),
            "time": np.sort(draw.integers(10**6, size=600)),
            "clicked": draw.integers(2, size=600),
        }
    ).write_parquet(raw / "log.parquet")
    words = np.array([f"v{i}" for i in range(8)])
    pl.DataFrame(
        {"item_id": np.arange(ITEMS)} | {name: words[draw.integers(8, size=ITEMS)] for name in COLUMNS}
    ).write_parquet(raw / "items.parquet")
    columns = {name: {"type": "categorical"} for name in COLUMNS}
    contract = Contract.model_validate(
        {
            "name": "wide",
            "root": str(raw),
            "interactions": {"path": "log.parquet", "user": "user", "item": "item", "time": "time", "label": "clicked"},
            "items": {"path": "items.parquet", "id": "item_id", "columns": columns},
            "checks": {"earliest": "1970-01-01"},
            "history": {"max_len": 6, "columns": {"label": {"type": "categorical"}}},
        }
    )
    return build_feature_set(contract, folder / "feature_sets").feature_set
