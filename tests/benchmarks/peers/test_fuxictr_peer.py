"""FuxiCTR is given our rows; its environment and what its script prints are read with care."""

import json
import math

import numpy as np
import polars as pl
import pytest

from benchmarks.harness.measured import ROOT
from benchmarks.peers import fuxictr_peer
from benchmarks.peers.literal_loader import item_tables
from features.errors import ConfigError
from tests.benchmarks.shaped import ITEMS, MAX_LEN


class TestFuxiCTR:
    def test_its_rows_are_ours(self, world, tmp_path):
        out, _, _ = world
        assert fuxictr_peer.write_data(out, tmp_path / "fuxictr") == MAX_LEN
        users = pl.read_parquet(tmp_path / "fuxictr" / "user_info.parquet")["full_item_seq"].to_list()
        rows = pl.read_parquet(tmp_path / "fuxictr" / "train.parquet")
        copied = pl.read_parquet(out / "rows.parquet")
        for name, other in (("item_index", "item_id"), ("label", "label"), ("views_level", "views_level")):
            assert rows[name].to_list() == copied[other].to_list()
        # What its collator does: the first `seq_len` items of the user, of those the newest, zeros in front.
        for user, length, history in zip(
            rows["user_index"], rows["seq_len"], copied["item_seq"].to_list(), strict=True
        ):
            newest = users[user][:length][-MAX_LEN:]
            assert [0] * (MAX_LEN - len(newest)) + newest == history
        items = pl.read_parquet(tmp_path / "fuxictr" / "item_info.parquet")
        assert items["item_index"].to_list() == items["item_id"].to_list() == list(range(ITEMS + 1))
        np.testing.assert_allclose(np.stack(items["item_emb_d128"].to_list()), item_tables(out)[1], atol=1e-6)

    def test_its_feature_map(self, world, tmp_path):
        fuxictr_peer.write_data(world[0], tmp_path)
        described = fuxictr_peer.feature_map(tmp_path, width=128)
        features = {
            name: spec for entry in json.loads(json.dumps(described))["features"] for name, spec in entry.items()
        }
        columns = {
            *pl.read_parquet_schema(tmp_path / "train.parquet"),
            *pl.read_parquet_schema(tmp_path / "item_info.parquet"),
        }
        assert {*features, *described["labels"]} == columns
        assert features["item_id"]["vocab_size"] == ITEMS + 1 and features["item_tags"]["vocab_size"] == 11_740
        assert {name for name, spec in features.items() if spec.get("source") == "item"} == {
            "item_id",
            "item_tags",
            "item_emb_d128",
        }

    def test_an_environment_that_cannot_be_made(self, tmp_path, monkeypatch):
        requirements = ROOT / "benchmarks" / "peers" / "fuxictr" / "requirements.txt"
        monkeypatch.setattr(fuxictr_peer.sys, "executable", "false")
        assert requirements == fuxictr_peer.REQUIREMENTS
        with pytest.raises(ConfigError, match=r"no environment for FuxiCTR.*requirements.txt"):
            fuxictr_peer.environment(tmp_path / "venv")
        assert not (tmp_path / "venv" / ".ready").exists()

    def test_an_environment_of_the_same_requirements_is_used_again(self, tmp_path, monkeypatch):
        monkeypatch.setattr(fuxictr_peer.sys, "executable", "false")
        (tmp_path / ".ready").write_text(fuxictr_peer.REQUIREMENTS.read_text())
        assert fuxictr_peer.environment(tmp_path) == tmp_path / "bin" / "python"
        (tmp_path / ".ready").write_text("fuxictr==1.0\n")
        with pytest.raises(ConfigError, match="no environment"):
            fuxictr_peer.environment(tmp_path)

    def test_what_the_script_prints_is_the_result(self, world, tmp_path, monkeypatch):
        python = tmp_path / "bin" / "python"
        python.parent.mkdir()
        python.write_text('#!/bin/sh\necho a warning\necho "{\\"rows_per_s\\": 7.5, \\"given\\": $2}"\n')
        python.chmod(0o755)
        (tmp_path / ".ready").write_text(fuxictr_peer.REQUIREMENTS.read_text())
        done = fuxictr_peer.train(str(world[0]), str(tmp_path), 64, steps=2, warmup=1)
        assert done["rows_per_s"] == 7.5
        given = done["given"]
        assert (given["batch_size"], given["steps"], given["warmup"], given["max_len"]) == (64, 2, 1, MAX_LEN)
        assert given["embedding_dim"] == 128 and math.isclose(given["embedding_l2"], 2e-4)
        python.write_text("#!/bin/sh\necho out of luck >&2\nexit 1\n")
        with pytest.raises(RuntimeError, match="out of luck"):
            fuxictr_peer.train(str(world[0]), str(tmp_path), 64, steps=2, warmup=1)
        python.write_text("#!/bin/sh\nkill -9 $$\n")
        with pytest.raises(ConfigError, match=r"killed by signal 9.*batch size \(64\)"):
            fuxictr_peer.train(str(world[0]), str(tmp_path), 64, steps=2, warmup=1)
