"""A log whose items and users change, through a bundle: requests read the latest, past rows what held then."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from ctr.config import ModelConfig
from ctr.export.export_bundle import export_bundle
from ctr.export.ranker_as_of import ranker_as_of
from ctr.model.click_model import ClickModel
from ctr.serving.ranker import Ranker
from ctr.training.loop import predict
from features.build.build import build_feature_set
from features.encoding.request import parse_request
from features.store.feature_set import FeatureSet
from pipelines.job.evaluate import _served_scores
from tests.features.raw import START, Tables, raw_log
from tests.trained import random_model

MINUTE = 60
CHANGES = (0, START + 10 * MINUTE, START + 36 * MINUTE)  # the last one within the test window


def changing(tables: Tables) -> None:
    """All items but 101 and all users become something else, again in the test window; 101 is unknown till then."""
    genres, segments = ("drama", "comedy", "drama"), ("s0", "s1", "s0")
    items = [
        tables["items"].with_columns(
            since=pl.lit(time, pl.Int64), genre=pl.lit(genres[n]), tags=pl.lit(["abc"[n]]), price=pl.lit(float(n * 9))
        )
        for n, time in enumerate(CHANGES)
    ]
    tables["items"] = pl.concat(items).filter((pl.col("item_id") != 101) | (pl.col("since") == CHANGES[2]))
    users = [
        tables["users"].with_columns(since=pl.lit(time, pl.Int64), segment=pl.lit(segments[n]))
        for n, time in enumerate(CHANGES)
    ]
    tables["users"] = pl.concat(users)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[ClickModel, FeatureSet, Ranker]:
    folder = tmp_path_factory.mktemp("changing")
    over = {"items": {"valid_from": "since"}, "users": {"valid_from": "since"}}
    feature_set = build_feature_set(raw_log(folder / "raw", changing, over), folder / "out").feature_set
    model = random_model(feature_set, ModelConfig(embedding_dim=4, attention_dim=4, layers=1, rows=2))
    bundle = folder / "bundle"
    export_bundle(
        model,
        feature_set,
        bundle,
        model_version="run-1",
        architecture="qin",
        metrics={},
        controls={},
        git_revision="0123abcd",
    )
    return model, feature_set, Ranker.load(bundle)


def test_rows_of_the_past_are_served_what_held_then(exported):
    model, feature_set, ranker = exported
    with ranker_as_of(ranker, feature_set) as then:
        served = np.stack(list(_served_scores(then, feature_set, "test")))[:, 0]
    np.testing.assert_allclose(served, predict(model, feature_set, "test"), atol=1e-5)
    time = np.concatenate([part["time"] for part in feature_set.rows("test")])
    assert time.min() < CHANGES[2] * 1_000_000 < time.max()


def test_a_request_is_served_the_latest_versions(exported):
    _, feature_set, ranker = exported
    candidates = [101, 102, 103]
    request = {"user": 1, "context": {"hour": 1, "load": 0.5}, "history": [104, 101], "candidates": candidates}
    answer = {one.item: one.score for one in ranker.rank(request).ranked}
    encoded = ranker.encoder.encode_request(parse_request(request, ranker.encoder.contract))
    assert ranker.encoder.user["segment"].raw_value(encoded.user["segment"][0]) == "s0"
    with ranker_as_of(ranker, feature_set) as then:
        now, before = (then.scores(encoded, CHANGES[place] * 1_000_000)[:, 0] for place in (2, 1))
    np.testing.assert_allclose(now, [answer[item] for item in candidates], atol=1e-6)
    assert abs(now - before).max() > 1e-3
