"""The MM-CTR-shaped log has the shape of the challenge, and its copied histories are those of its feature set."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from benchmarks.inputs import mmctr_shaped
from features.errors import ConfigError
from features.store.feature_set import FeatureSet
from tests.benchmarks.shaped import ITEMS, MAX_LEN, ROWS, TRAINED, USERS


class TestTheLog:
    def test_what_build_says(self, world):
        out, built, feature_set = world
        assert built["rows"] == feature_set.manifest.windows["train"].rows == TRAINED
        assert built["feature_set"] == str(feature_set.path) and built["raw"] == str(out / "raw")
        log = pl.read_parquet(out / "raw" / "interactions.parquet").sort("timestamp").head(TRAINED)
        before = log.select(pl.int_range(pl.len()).over("user_id").clip(upper_bound=MAX_LEN))
        assert built["mean_history"] == pytest.approx(before.to_series().mean(), abs=0.005)

    def test_its_shape_is_that_of_the_challenge(self, world):
        out, _, feature_set = world
        log = pl.read_parquet(out / "raw" / "interactions.parquet")
        assert log["label"].mean() == 0.25
        assert log["timestamp"].is_unique().all() and log["user_id"].n_unique() == USERS
        for level in ("likes_level", "views_level"):
            assert sorted(log[level].unique()) == list(range(1, 11))
        items = pl.read_parquet(out / "raw" / "items.parquet")
        lengths = items["item_tags"].list.len()
        assert (lengths.min(), lengths.max()) == (1, 5)
        assert (items["item_tags"].list.n_unique() == lengths).all()
        vectors = pl.read_parquet(out / "raw" / "vectors.parquet")["item_emb_d128"].to_numpy()
        assert vectors.shape == (ITEMS, 128) and 1.5 < np.abs(vectors).max() < 3.5
        schema = feature_set.schema
        assert [field.name for field in schema.item] == ["item_id", "tags"] and not schema.event
        assert [field.name for field in schema.context] == ["likes_level", "views_level"]
        assert schema.vectors[0].width == 128 and schema.vectors[0].complete

    def test_feedback_adds_what_an_event_and_a_candidate_say_and_leaves_the_log_as_it_is(self, world, tmp_path):
        out, _, _ = world
        with_feedback = mmctr_shaped.build(str(tmp_path / "log"), ROWS, USERS, ITEMS, MAX_LEN, feedback=True)
        schema = FeatureSet.open(Path(with_feedback["feature_set"])).schema
        assert [field.name for field in schema.event] == ["label", "residual"]
        assert [field.name for field in schema.candidate] == ["item_rate"]
        assert [field.name for field in schema.context] == ["likes_level", "views_level"]
        logs = [pl.read_parquet(folder / "raw" / "interactions.parquet") for folder in (out, tmp_path / "log")]
        assert logs[0].equals(logs[1])

    def test_every_item_has_an_embedding_of_its_own_and_some_are_popular(self, world):
        out, _, feature_set = world
        assert feature_set.schema.item[0].size == ITEMS + 2
        shown = pl.read_parquet(out / "raw" / "interactions.parquet")["item_id"].value_counts()["count"]
        assert len(shown) == ITEMS and shown.max() > 20 * shown.median()

    def test_the_label_can_be_learned(self, world):
        out, _, _ = world
        by_item = (
            pl.read_parquet(out / "raw" / "interactions.parquet")
            .group_by("item_id")
            .agg(pl.col("label").mean(), pl.len())
        )
        rate, rows = by_item["label"].to_numpy(), by_item["len"].to_numpy()
        noise = (0.25 * 0.75 / rows)[rows > 20].mean()
        assert rate[rows > 20].var() > 2 * noise

    def test_the_seed_decides_it(self, world, tmp_path):
        out, _, _ = world
        logs = []
        for seed in (1, 2):
            mmctr_shaped.build(str(tmp_path / str(seed)), ROWS, USERS, ITEMS, MAX_LEN, seed=seed)
            logs.append(pl.read_parquet(tmp_path / str(seed) / "raw" / "interactions.parquet"))
        assert logs[0].equals(pl.read_parquet(out / "raw" / "interactions.parquet"))
        assert not logs[0].equals(logs[1])

    def test_too_few_rows_for_the_items(self, tmp_path):
        with pytest.raises(ConfigError, match=r"100 rows have 80 .* 81 items.* at least 103 rows"):
            mmctr_shaped.build(str(tmp_path), 100, 5, 81, MAX_LEN)

    def test_copied_histories(self, tmp_path):
        log = {
            "user_id": np.array([1, 2, 1, 1, 1]),
            "item_id": np.array([5, 6, 7, 8, 9]),
            "likes_level": np.arange(1, 6),
            "views_level": np.arange(1, 6),
            "label": np.array([0, 1, 0, 1, 0]),
        }
        mmctr_shaped._copy_histories(tmp_path / "rows.parquet", log, max_len=2)
        rows = pl.read_parquet(tmp_path / "rows.parquet").sort("item_id")
        assert rows["item_seq"].to_list() == [[0, 0], [0, 0], [0, 5], [5, 7], [7, 8]]
        assert rows["label"].to_list() == [0, 1, 0, 1, 0]
