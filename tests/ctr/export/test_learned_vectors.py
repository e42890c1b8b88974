"""A learned vector set from the log to the bundle: trained, exported, scored by ONNX as by torch, and upserted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ctr.config import ModelConfig, TrainConfig
from ctr.data.feature_tables import frozen_tables
from ctr.export.export_bundle import ExportResult, export_bundle
from ctr.export.model_card import _learned_vectors
from ctr.model.click_model import ClickModel
from ctr.serving.agreement import TOLERANCE
from ctr.serving.bundle import open_bundle
from ctr.serving.items.new_items import items_of_json
from ctr.serving.items.upsert import upsert_items
from ctr.serving.ranker import Ranker
from ctr.training.loop import fit
from features.contract.contract import Contract
from features.contract.vectors import Embedding
from features.progress import silent
from tests.grown import grown_feature_set

OVER: dict[str, Any] = {
    "embeddings": {"covisit": {"learn": "history", "width": 4}},
    "vectors": {
        "semantic_ids": {"code": {"set": "covisit", "levels": 1, "size": 3}},
        "fusion": {"both": {"sets": ["text", "covisit"], "dim": 3, "keep_parts": True}},
    },
}
MODEL = ModelConfig(
    embedding_dim=4,
    vector_dim=4,
    attention_dim=4,
    layers=1,
    evidence_heads=2,
    match_features=True,
    vector_gate=True,
    modality_dropout=0.1,
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    folder = tmp_path_factory.mktemp("learned")
    feature_set = grown_feature_set(folder, 1, OVER)
    torch.manual_seed(0)
    model = ClickModel(MODEL, feature_set.schema)
    model.attach(frozen_tables(feature_set))
    fit(model, feature_set, TrainConfig(epochs=1, batch_size=128, device="cpu"), folder / "run", progress=silent)
    about: dict[str, Any] = {"metrics": {}, "controls": {}, "git_revision": "none"}
    return export_bundle(model.eval(), feature_set, folder / "bundle", model_version="m", architecture="qin", **about)


def test_onnx_scores_as_torch_does(exported):
    assert exported.max_logit_difference <= TOLERANCE


def test_the_model_card_says_what_the_set_knows_nothing_of(exported):
    card = (exported.path / "MODEL_CARD.md").read_text()
    assert "- Vectors of `covisit` were learned from what users saw up to 1970-01-02 " in card


def test_the_model_card_says_of_each_set_until_when_it_was_learned(exported):
    metadata = open_bundle(exported.path).manifest
    sets = {"early": Embedding(learn="tables"), "late": Embedding(learn="history"), "other": Embedding(path="v.npy")}
    first, last = (int(t) for t in np.array(["2026-03-01T12", "2026-03-09T13"], "M8[us]").astype(np.int64))
    window = metadata.windows["train"].model_copy(update={"first_time": first, "last_time": last})
    dated = metadata.model_copy(update={"windows": metadata.windows | {"train": window}})
    lines = _learned_vectors(dated, Contract.model_construct(embeddings=sets))
    assert [line.partition(" 1")[0] for line in lines] == [
        "- Vectors of `late` were learned from what users saw up to 2026-03-09",
        "- Vectors of `early` were learned from what users saw before 2026-03-01",
    ]


def test_an_upserted_item_may_have_a_vector_of_the_set_or_none(exported):
    entry: dict[str, Any] = {"columns": {"genre": "drama", "tags": ["new"], "price": 3.0}}
    new = [{"item": 901, **entry}, {"item": 902, **entry, "vectors": {"covisit": [0.3, -0.1, 0.8, 0.2]}}]
    made = upsert_items(exported.path, lambda encoder: items_of_json(encoder, {"items": new}, 10))
    request = {"user": 3, "context": {"device": "desk", "load": 1.0, "depth": 2}, "candidates": [901, 902]}
    ranked = Ranker.load(made.path).rank(request).ranked
    assert ranked[0].score != ranked[1].score
