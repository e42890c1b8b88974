"""Fresh rows: which they are, and that a bundle scores them from the raw log as a server would have, exactly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from ctr.config import ModelConfig
from ctr.serving.agreement import TOLERANCE, logit_difference
from ctr.serving.ranker import Ranker
from features.build.build import build_feature_set
from features.contract.contract import Contract
from features.encoding.encoder import Encoder
from features.errors import DataError
from features.store.feature_set import FeatureSet, Sampling
from pipelines.gate.fresh import FreshRows, fresh_rows, sampled_scores, scores_as_stored, scores_from_log, scores_of
from tests.ctr.serving.shop import export
from tests.listed import build_listed, write_listed
from tests.toy import toy_feature_set
from tests.trained import built_feature_set, random_model, raw_contract

CONFIG = ModelConfig(embedding_dim=4, attention_dim=4, match_features=True)
SMALL = ModelConfig(embedding_dim=4, attention="mean", tower="linear")


def ranker_of(feature_set: FeatureSet, folder: Path, config: ModelConfig = CONFIG) -> Ranker:
    """A bundle of a model of random weights: no part of it says nothing."""
    export(random_model(feature_set, config, seed=5), feature_set, folder)
    return Ranker.load(folder)


def check_scores(feature_set: FeatureSet, ranker: Ranker) -> None:
    """Scores from the raw log are those of the feature set's own rows."""
    rows = fresh_rows(feature_set, 1000)
    stored, from_log = scores_as_stored(ranker, rows), scores_from_log(ranker, rows)
    assert len(stored) == feature_set.manifest.windows["test"].rows
    assert logit_difference(from_log, stored) <= TOLERANCE
    assert np.ptp(stored) > 0.05, "a model that says one thing of all rows proves nothing"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> tuple[FeatureSet, Ranker, Path]:
    """Every semantic type, counters and event columns; the bundle, and the folder that all lies in."""
    folder = tmp_path_factory.mktemp("shop")
    feature_set = built_feature_set(folder)
    return feature_set, ranker_of(feature_set, folder / "bundle"), folder


def test_every_kind_of_column_is_read_from_the_raw_log(shop: tuple[FeatureSet, Ranker, Path]) -> None:
    check_scores(shop[0], shop[1])


def test_candidates_that_are_compared_are_those_of_the_request(tmp_path: Path) -> None:
    write_listed(tmp_path)
    feature_set = build_listed(tmp_path)
    check_scores(feature_set, ranker_of(feature_set, tmp_path / "bundle", SMALL))


def positives(folder: Path, **changes: Any) -> FeatureSet:
    """A log of positives, to which a build draws negatives, with a context column."""
    draw = np.random.default_rng(0)
    (folder / "raw").mkdir()
    pl.DataFrame(
        {
            "user": draw.integers(30, size=400),
            "item": draw.integers(40, size=400),
            "time": np.sort(draw.integers(10**6, size=400)),
            "device": draw.choice(["phone", "desk"], size=400),
        }
    ).write_parquet(folder / "raw/log.parquet")
    content = {
        "name": "takes",
        "root": str(folder / "raw"),
        "interactions": {
            "path": "log.parquet",
            "user": "user",
            "item": "item",
            "time": "time",
            "negatives": {"per_positive": 3, "how": "uniform", "seed": 1},
            "context": {"device": {"type": "categorical"}},
        },
        "checks": {"earliest": "1970-01-01"},
        "history": {"max_len": 4},
    }
    return build_feature_set(Contract.model_validate(content), folder / "sets").feature_set


def test_a_drawn_negative_has_the_context_of_its_positive(tmp_path: Path) -> None:
    feature_set = positives(tmp_path)
    rows = fresh_rows(feature_set, 10_000)
    assert 0.2 < rows.label_N.mean() < 0.3
    check_scores(feature_set, ranker_of(feature_set, tmp_path / "bundle", SMALL))


def test_a_champion_reads_later_rows_by_its_own_encoder_as_a_server_does(tmp_path: Path) -> None:
    """Its vocabularies and scales are others, and some users and items are new to it."""
    later = built_feature_set(tmp_path)
    plain = raw_contract(tmp_path / "raw").model_dump(mode="json") | {"counters": {}}
    plain["history"]["columns"].pop("residual")
    contract = Contract.model_validate(plain)
    sets = tmp_path / "plain"
    earlier = build_feature_set(contract, sets, as_of="1970-01-07").feature_set
    later = build_feature_set(contract, sets).feature_set
    ranker = ranker_of(earlier, tmp_path / "bundle")
    names, encoder = Encoder.load(later.path), ranker.encoder
    assert encoder.context["load"].encode_one(3.0) != names.context["load"].encode_one(3.0)
    rows = fresh_rows(later, 1000)
    found = scores_of(ranker, rows)
    log = pl.read_parquet(tmp_path / "raw/log.parquet")
    for place in range(0, len(found), 7):
        user, item = names.users.value(rows.user_N[place]), names.items.value(rows.item_N[place])
        seconds = int(rows.time_N[place]) // 1_000_000
        mine = log.filter(pl.col("user") == user)
        (row,) = mine.filter((pl.col("time") == seconds) & (pl.col("item") == item)).to_dicts()
        request = {
            "user": user,
            "time": seconds,
            "context": {name: row[name] for name in ("device", "load")},
            "history": mine.filter(pl.col("time") < seconds).drop("user").to_dicts(),
            "candidates": [item],
        }
        served = ranker.rank(json.loads(json.dumps(request))).ranked[0].score
        assert logit_difference(found[place : place + 1], np.array([served])) <= TOLERANCE
    assert later.schema.items >= earlier.schema.items and np.ptp(found) > 0.05


def test_counters_of_a_champion_are_what_the_log_had_before_each_row(tmp_path: Path) -> None:
    """As a server would be told them in a raw request: those of the end of the champion's log are days old."""
    built_feature_set(tmp_path)
    plain = raw_contract(tmp_path / "raw").model_dump(mode="json")
    plain["history"]["columns"].pop("residual")
    contract, sets = Contract.model_validate(plain), tmp_path / "sets"
    earlier = build_feature_set(contract, sets, as_of="1970-01-07").feature_set
    later = build_feature_set(contract, sets).feature_set
    ranker, names = ranker_of(earlier, tmp_path / "bundle"), Encoder.load(later.path)
    rows = fresh_rows(later, 1000)
    found, stale = scores_of(ranker, rows), []
    log = pl.read_parquet(tmp_path / "raw/log.parquet")
    mean = ranker.encoder.snapshot.mean
    for place in range(0, len(found), 7):
        user, item = names.users.value(rows.user_N[place]), names.items.value(rows.item_N[place])
        seconds = int(rows.time_N[place]) // 1_000_000
        before = log.filter(pl.col("time") < seconds)
        of_item, of_user = before.filter(pl.col("item") == item), before.filter(pl.col("user") == user)
        fade = 2 ** (-(seconds - of_user["time"].to_numpy()) / (3 * 86_400))
        candidate = {
            "item": item,
            "item_rate": (of_item["clicked"].sum() + 10 * mean) / (len(of_item) + 10),
            "item_count": float((of_item["time"] < seconds // 3600 * 3600).sum()),
        }
        user_rate = ((fade * of_user["clicked"].to_numpy()).sum() + 10 * mean) / (fade.sum() + 10)
        (row,) = log.filter(
            (pl.col("user") == user) & (pl.col("time") == seconds) & (pl.col("item") == item)
        ).to_dicts()
        context = {name: row[name] for name in ("device", "load")}
        request = {"user": user, "time": seconds, "context": context, "history": of_user.drop("user").to_dicts()}
        told = request | {"context": {**context, "user_rate": float(user_rate)}, "candidates": [candidate]}
        served = ranker.rank(json.loads(json.dumps(told))).ranked[0].score
        assert logit_difference(found[place : place + 1], np.array([served])) <= TOLERANCE
        stale.append(served - ranker.rank(request | {"candidates": [item]}).ranked[0].score)
    assert np.abs(stale).max() > 0.01, "counters that change no score prove nothing"


def test_rows_that_bring_their_histories_are_decoded(tmp_path: Path) -> None:
    """Of a log without events in time there is no past to read."""
    draw = np.random.default_rng(0)
    (tmp_path / "raw").mkdir()
    for name, rows in (("train", 300), ("valid", 60), ("test", 60)):
        pl.DataFrame(
            {
                "user": draw.integers(30, size=rows),
                "item": draw.integers(40, size=rows),
                "clicked": draw.integers(2, size=rows),
                "device": draw.choice(["phone", "desk"], size=rows),
                "seen": [draw.integers(40, size=i % 5).tolist() for i in range(rows)],
            }
        ).write_parquet(tmp_path / f"raw/{name}.parquet")
    content = {
        "name": "given",
        "root": str(tmp_path / "raw"),
        "interactions": {
            "path": "train.parquet",
            "user": "user",
            "item": "item",
            "time": None,
            "label": "clicked",
            "context": {"device": {"type": "categorical"}},
        },
        "history": {"max_len": 4, "given": {"column": "seen"}},
        "split": {"by": "files", "valid": "valid.parquet", "test": "test.parquet"},
    }
    feature_set = build_feature_set(Contract.model_validate(content), tmp_path / "sets").feature_set
    check_scores(feature_set, ranker_of(feature_set, tmp_path / "bundle", SMALL))


def test_a_log_that_lost_rows_is_named(shop: tuple[FeatureSet, Ranker, Path]) -> None:
    feature_set, ranker, folder = shop
    path = folder / "raw/log.parquet"
    log = pl.read_parquet(path)
    rows = fresh_rows(feature_set, 1000)
    log.filter(pl.col("time") != int(rows.time_N[0]) // 1_000_000).write_parquet(path)
    try:
        with pytest.raises(
            DataError, match=r"log\.parquet: lacks 1 of \d+ rows of the feature set, e\.g\. user 'u\d+'"
        ):
            scores_from_log(ranker, rows)
    finally:
        log.write_parquet(path)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> FeatureSet:
    return toy_feature_set(tmp_path_factory.mktemp("toy"))


def test_all_rows_are_fresh_where_they_are_few(toy: FeatureSet) -> None:
    rows = fresh_rows(toy, 10_000)
    assert rows.split == "test" and len(rows.place_N) == toy.manifest.windows["test"].rows
    assert rows.place_N.tolist() == list(range(len(rows.place_N)))
    assert rows.request_N is None and rows.groups is rows.user_N
    labels = np.concatenate([part["label"] for part in toy.rows("test")])
    assert rows.label_N.tolist() == labels.tolist()


def test_of_many_rows_whole_users_are_drawn_and_no_user_fills_the_gate(toy: FeatureSet) -> None:
    whole, some = fresh_rows(toy, 10_000), fresh_rows(toy, 60)
    assert 40 < len(some.place_N) <= 60
    most = 60 // 20
    for user in np.unique(some.user_N):
        mine = whole.time_N[whole.user_N == user]
        newest = np.sort(mine)[-most:]
        assert np.sort(some.time_N[some.user_N == user]).tolist() == newest.tolist()
    assert len(np.unique(some.user_N)) < len(np.unique(whole.user_N))
    again: FreshRows = fresh_rows(toy, 60)
    assert again.place_N.tolist() == some.place_N.tolist()


def test_rows_without_a_label_weight_or_user_are_none(toy: FeatureSet, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [{name: np.array(values) for name, values in part.items()} for part in toy.rows("test")]
    parts[0]["label"][0], parts[0]["weight"][1], parts[1]["user"][0], parts[1]["item"][1] = np.nan, 0, 1, 1
    monkeypatch.setattr(toy, "rows", lambda split: parts)
    left = set(fresh_rows(toy, 10_000).place_N.tolist())
    count = len(parts[0]["item"])
    assert {0, 1, count, count + 1}.isdisjoint(left) and len(left) == sum(len(part["item"]) for part in parts) - 4


def test_served_probabilities_of_drawn_negatives_are_those_of_the_rows(toy: FeatureSet) -> None:
    scores = np.array([0.1, 0.5])
    assert sampled_scores(scores, toy) is scores
    manifest = toy.manifest.model_copy(update={"sampling": Sampling(drawn=10, per_positive=1, rate=0.1)})
    drawn = FeatureSet(toy.path, manifest)
    # One in ten negatives is there: odds of 1 to 9 are 10 to 9, and those of 1 to 1 are 10 to 1.
    np.testing.assert_allclose(sampled_scores(scores, drawn), [10 / 19, 10 / 11])
