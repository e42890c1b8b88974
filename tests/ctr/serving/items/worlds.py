"""One shop, built twice: with the new items in its tables, and without; the log is the same and never names them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from ctr.config import ModelConfig
from ctr.data.feature_tables import frozen_tables
from ctr.export.export_bundle import ExportResult
from ctr.export.serving_graph import RequestGraph, item_table
from ctr.model.click_model import ClickModel
from ctr.serving.ranker import graph_inputs
from features.build.build import build_feature_set
from features.contract.contract import Contract
from features.encoding.encoder import Encoder
from features.encoding.request import parse_request
from features.store.feature_set import FeatureSet
from tests.ctr.serving.shop import export
from tests.trained import GENRES, random_model, raw_contract

OLD, NEW, ROWS, USERS = 40, 6, 600, 20
FIRST_NEW = 500
WIDTHS = {"text": 8, "image": 5}
DERIVED: dict[str, Any] = {
    "embeddings": {
        "text": {"path": "text.parquet", "normalize": "centre", "reduce": {"method": "pca", "dim": 4}},
        "image": {"path": "image.parquet", "dtype": "int8", "missing": {"by": "text", "k": 2}},
    },
    "vectors": {
        "fusion": {"both": {"sets": ["text", "image"], "dim": 3, "keep_parts": True, "dtype": "float16"}},
        "semantic_ids": {"code": {"set": "both", "levels": 2, "size": 4}},
    },
}


@dataclass(frozen=True)
class World:
    """A folder of raw tables and what was built of it."""

    raw: Path
    contract: Contract
    feature_set: FeatureSet


@dataclass(frozen=True)
class Worlds:
    """A bundle that does not know the new items, and its model with the tables of a catalogue that has them."""

    without: World
    whole: World
    model: ClickModel
    model_of_whole: ClickModel
    bundle: ExportResult

    def offline_scores(self, request: dict[str, Any]) -> dict[Any, list[float]]:
        """What torch gives each candidate of a raw request where the catalogue has the new items."""
        encoder = Encoder.load(self.whole.feature_set.path)
        parsed = parse_request(request, encoder.contract)
        feed = graph_inputs(encoder.encode_request(parsed))
        graph = RequestGraph(self.model_of_whole).eval()
        with torch.inference_mode():
            of_each = torch.stack(graph(*(torch.from_numpy(feed[name]) for name in graph.input_names)), dim=-1)
        return dict(zip(parsed.candidates, of_each.tolist(), strict=True))

    def offline_rows(self, ids: pl.Series) -> np.ndarray:
        """Rows of the item table that torch gives these items there."""
        rows = Encoder.load(self.whole.feature_set.path).items.encode(ids)
        return item_table(self.model_of_whole).numpy()[rows]


def tables() -> dict[str, pl.DataFrame]:
    """Raw tables; new items stand at the end of the items, one without image, one without text, one without both."""
    draw = np.random.default_rng(3)
    ids = np.r_[100 + np.arange(OLD), FIRST_NEW + np.arange(NEW)]
    items = len(ids)
    log = pl.DataFrame(
        {
            "user": [f"u{user}" for user in draw.integers(USERS, size=ROWS)],
            "item": 100 + draw.integers(OLD, size=ROWS),
            "time": np.sort(draw.integers(10**6, size=ROWS)),
            "clicked": draw.integers(2, size=ROWS),
            "device": draw.choice(["phone", "desk", "tv"], size=ROWS),
            "load": draw.exponential(3, size=ROWS),
        }
    )
    users = pl.DataFrame(
        {"user_id": [f"u{user}" for user in range(USERS)], "segment": draw.choice(["a", "b"], USERS), "age": 30.0}
    )
    item_table = pl.DataFrame(
        {
            "item_id": ids,
            "genre": [*draw.choice(GENRES, size=items - 1), "never seen"],
            "tags": [draw.choice(["new", "old", "loud", "calm"], size=i % 4).tolist() for i in range(items)],
            "price": [None if i % 5 == 0 else price for i, price in enumerate(draw.normal(10, 2, items))],
        }
    )
    found = {"log": log, "users": users, "items": item_table}
    lacking = {"text": [OLD - 1, OLD + 1, OLD + 2], "image": [3, OLD - 1, OLD, OLD + 2]}
    for name, width in WIDTHS.items():
        has = ~np.isin(np.arange(items), lacking[name])
        vectors = draw.normal(size=(items, width)).astype(np.float32)
        found[name] = pl.DataFrame({"item_id": ids[has], "vector": vectors[has]})
    return found


def is_new(table: pl.DataFrame) -> pl.DataFrame:
    """The rows of new items."""
    return table.filter(pl.col("item_id") >= FIRST_NEW)


def world(folder: Path, whole: bool) -> World:
    raw = folder / "raw"
    raw.mkdir(parents=True)
    for name, table in tables().items():
        kept = table if whole or "item_id" not in table.columns else table.filter(pl.col("item_id") < FIRST_NEW)
        kept.write_parquet(raw / f"{name}.parquet")
    contract = Contract.model_validate(raw_contract(raw).model_dump(mode="json") | DERIVED)
    return World(raw, contract, build_feature_set(contract, folder / "feature_sets").feature_set)


def two_worlds(folder: Path) -> Worlds:
    without, whole = world(folder / "without", whole=False), world(folder / "whole", whole=True)
    config = ModelConfig(embedding_dim=8, attention_dim=8, match_features=True, tasks=("like", "stay"))
    model = random_model(without.feature_set, config, seed=4)
    model_of_whole = ClickModel(config, whole.feature_set.schema)
    model_of_whole.load_state_dict(model.state_dict())
    model_of_whole.attach(frozen_tables(whole.feature_set))
    return Worlds(
        without,
        whole,
        model,
        model_of_whole.eval(),
        export(model, without.feature_set, folder / "bundles" / "run-1"),
    )


def new_files(folder: Path) -> tuple[Path, list[str]]:
    """Files of the new items, and what `--vectors` says of them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables().items():
        if "item_id" in table.columns:
            is_new(table).write_parquet(folder / f"new_{name}.parquet")
    return folder / "new_items.parquet", [f"{name}={folder / f'new_{name}.parquet'}" for name in WIDTHS]


def new_json() -> list[dict[str, Any]]:
    """The new items as `POST /v1/items` takes them."""
    found = tables()
    vectors = {name: dict(is_new(found[name]).iter_rows()) for name in WIDTHS}
    entries = []
    for row in is_new(found["items"]).iter_rows(named=True):
        item = row.pop("item_id")
        entry = {"item": item, "columns": row}
        entries.append(entry | {"vectors": {name: of[item] for name, of in vectors.items() if item in of}})
    return entries
