"""A simulated log: items that training never saw rank through an upsert as they do where the catalogue has them.

`.venv/bin/python -m pytest -n 0 -s -m slow tests/pipelines/serving/test_upsert_proof.py` prints the numbers.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml
from rich.console import Console

from ctr.config import ModelConfig, TrainConfig
from ctr.data.feature_tables import frozen_tables
from ctr.evaluation.metrics import auc
from ctr.export.row_request import RowRequest
from ctr.export.serving_graph import item_table
from ctr.model.click_model import ClickModel
from ctr.serving.items.delta import ItemDelta
from ctr.serving.ranker import Ranker
from ctr.training.loop import predict
from features.build.build import build_feature_set
from features.contract.contract import Contract
from features.encoding.encoder import Encoder
from features.progress import silent
from features.simulator.simulate import simulate
from features.store.feature_set import FeatureSet
from features.store.schema import UNKNOWN
from pipelines.job.fitting import fit_and_calibrate, new_model
from pipelines.serving.upsert import upsert_files
from tests.ctr.serving.shop import export

ROWS, USERS, ITEMS = 20_000, 400, 2_000
TABLES = ("items", "text", "image")
CONTRACT = Path(__file__).parents[3] / "conf/data/simulated.yaml"


def written(raw: Path, log: pl.DataFrame, folder: Path, without: pl.Series) -> FeatureSet:
    """The feature set of a log in three files, and of tables, that lack some items."""
    folder.mkdir()
    times = log["timestamp"]
    first = {name: times.sort()[int(share * len(log))] for name, share in (("valid", 0.7), ("test", 0.8))}
    parts = {
        "interactions": log.filter(times < first["valid"]),
        "valid": log.filter((times >= first["valid"]) & (times < first["test"])),
        "test": log.filter(times >= first["test"]),
    }
    tables = {name: pl.read_parquet(raw / f"{name}.parquet") for name in TABLES}
    for name, table in (parts | tables).items():
        table.filter(~pl.col("item_id").is_in(without.implode())).write_parquet(folder / f"{name}.parquet")
    (folder / "users.parquet").write_bytes((raw / "users.parquet").read_bytes())
    content = yaml.safe_load(CONTRACT.read_text(encoding="utf-8"))
    split = {"by": "files", "valid": "valid.parquet", "test": "test.parquet"}
    contract = Contract.model_validate(content | {"root": str(folder), "truth": None, "split": split})
    return build_feature_set(contract, folder / "feature_sets").feature_set


def served(ranker: Ranker, whole: FeatureSet, chosen: list[np.ndarray]) -> np.ndarray:
    """Scores of test rows by the ranker, whose item rows are found by raw id."""
    ids = Encoder.load(whole.path).items
    row_of_I = np.r_[0, UNKNOWN, ranker.encoder.items.encode(ids.values)].astype(np.int64)
    scores = []
    for rows, events, places in zip(whole.rows("test"), whole.events("test"), chosen, strict=True):
        for i in places:
            request = RowRequest.of_row(whole.schema, rows, events, i, rows["item"][i : i + 1].astype(np.int64))
            encoded = request.encoded(whole.schema, whole.users)
            encoded = replace(
                encoded,
                history_item=row_of_I[encoded.history_item],
                candidate_item=row_of_I[encoded.candidate_item],
            )
            scores.append(ranker.score(encoded)[0])
    return np.array(scores)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_new_items_rank_through_an_upsert_as_in_the_catalogue(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    simulate(raw, rows=ROWS, users=USERS, items=ITEMS, seed=5)
    log = pl.read_parquet(raw / "interactions.parquet")
    nobody = pl.Series("item_id", [], dtype=log["item_id"].dtype)
    whole = written(raw, log, tmp_path / "whole", nobody)
    seen = pl.read_parquet(tmp_path / "whole/interactions.parquet")["item_id"].unique()
    every = pl.read_parquet(raw / "items.parquet")["item_id"]
    new = every.filter(~every.is_in(seen.implode())).sort()
    without = written(raw, log, tmp_path / "without", new)

    config = ModelConfig(embedding_dim=8, attention_dim=16)
    model = new_model(config, without, 1)
    training = TrainConfig(epochs=2, batch_size=512, evaluations_per_epoch=1, device="cpu")
    fit_and_calibrate(model, without, training, tmp_path / "run", progress=silent)
    bundle = export(model, without, tmp_path / "bundles" / "run").path

    for name in TABLES:
        table = pl.read_parquet(raw / f"{name}.parquet").filter(pl.col("item_id").is_in(new.implode()))
        table.write_parquet(tmp_path / f"new_{name}.parquet")
    vectors = [f"{name}={tmp_path / f'new_{name}.parquet'}" for name in ("text", "image")]
    made = upsert_files(bundle, tmp_path / "new_items.parquet", vectors, None, Console(quiet=True))
    assert (made["new"], made["changed"]) == (len(new), 0)

    in_catalogue = ClickModel(config, whole.schema)
    in_catalogue.load_state_dict(model.state_dict())
    in_catalogue.attach(frozen_tables(whole))
    encoder = Encoder.load(whole.path)
    table_ID = item_table(in_catalogue.eval()).numpy()
    delta = ItemDelta.load(Path(made["bundle"]), table_ID.shape[1])
    assert delta is not None and sorted(delta.new) == new.to_list()
    difference = float(np.abs(delta.rows_KD - table_ID[encoder.items.encode(delta.new)]).max())
    assert difference <= 1e-6

    is_new_I = np.zeros(encoder.schema.items, bool)
    is_new_I[encoder.items.encode(new)] = True
    chosen = [np.flatnonzero(is_new_I[rows["item"]]) for rows in whole.rows("test")]
    labels = np.concatenate([rows["label"][places] for rows, places in zip(whole.rows("test"), chosen, strict=True)])
    offline = predict(in_catalogue, whole, "test")
    flat = np.concatenate([is_new_I[rows["item"]] for rows in whole.rows("test")])
    found: dict[str, Any] = {
        "new items": len(new),
        "rows": len(labels),
        "largest difference of a row": difference,
        "offline": auc(labels, offline[flat]),
        "upserted": auc(labels, served(Ranker.load(Path(made["bundle"])), whole, chosen)),
        "unknown": auc(labels, served(Ranker.load(bundle), whole, chosen)),
    }
    print(found)
    assert len(labels) > 300
    assert found["upserted"] == pytest.approx(found["offline"], abs=0.002)
    assert found["upserted"] > found["unknown"] + 0.02
