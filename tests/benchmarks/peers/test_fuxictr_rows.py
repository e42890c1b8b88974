"""What FuxiCTR is given, row by row; FuxiCTR itself runs where QUADRANK_FUXICTR names a folder for it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from benchmarks.peers import fuxictr_rows
from benchmarks.peers.fuxictr_peer import environment
from benchmarks.peers.fuxictr_rows import L2, MAX_LEN, train_peer, write_data
from features.build.build import build_feature_set
from features.contract.contract import load_contract
from features.encoding.encoder import Encoder
from features.errors import ConfigError
from features.simulator.simulate import simulate
from features.store.feature_set import FeatureSet, write_arrow
from features.store.versions import ITEM_VERSIONS, ROW, VALID_FROM
from tests.pipelines.cli.test_commands import ROOT
from tests.toy import toy_feature_set


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("peer")
    simulate(folder / "raw", rows=4_000, users=100, items=80, seed=1)
    contract = load_contract(ROOT / "conf/data/simulated.yaml", root=str(folder / "raw"))
    # FuxiCTR's loader for histories takes no category of a row it has no vocabulary of: all of ours have one.
    feature_set = build_feature_set(contract, folder).feature_set
    write_data(feature_set, folder / "out")
    return feature_set, folder / "out"


def test_histories_are_what_was_liked_strictly_before(written):
    feature_set, out = written
    rows, histories = (
        pq.read_table(out / "test.parquet"),
        pq.read_table(out / "test_histories.parquet")["full_item_seq"],
    )
    encoder = Encoder.load(feature_set.path)
    clicked = encoder.event["clicked"]
    at = 0
    some = 0
    for part, events in zip(feature_set.rows("test"), feature_set.events("test"), strict=True):
        said = np.array([clicked.raw_value(one) for one in events["clicked"]])
        for end, length, time in zip(part["history_end"], part["history_len"], part["time"], strict=True):
            past = slice(end - length, end)
            assert (events["time"][past] < time).all()
            expected = events["item"][past][said[past] == 1][-MAX_LEN:].tolist()
            # An empty one would make FuxiCTR divide by zero: it gets the unknown item.
            assert histories[at].as_py() == (expected or [1]) and rows["seq_len"][at].as_py() == max(len(expected), 1)
            some += len(expected) > 0
            at += 1
    assert at == len(rows) and some > 50


def test_rows_carry_labels_counters_and_users_in_stored_order(written):
    feature_set, out = written
    table = pq.read_table(out / "valid.parquet")
    parts = feature_set.rows("valid")
    for name, column in (("label", "label"), ("item_rate", "row_item_rate"), ("item", "item_index")):
        np.testing.assert_allclose(table[column].to_numpy(), np.concatenate([part[name] for part in parts]))
    user = np.concatenate([part["user"] for part in parts])
    np.testing.assert_array_equal(table["user_country"].to_numpy(), feature_set.users["country"][user])
    assert not any(np.isnan(table[name].to_numpy()).any() for name in table.column_names)


def test_the_map_names_every_column(written):
    _, out = written
    described = json.loads((out / "feature_map.json").read_text())
    names = {name for one in described["features"] for name in one}
    columns = set(pq.read_table(out / "train.parquet").column_names) | set(
        pq.read_table(out / "items.parquet").column_names
    )
    assert columns - names == {"label"} and names <= columns


@pytest.mark.slow
@pytest.mark.skipif("QUADRANK_FUXICTR" not in os.environ, reason="QUADRANK_FUXICTR names no folder for FuxiCTR")
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("model", ["DIN", "DCNv2"])
def test_fuxictr_itself_trains_and_scores_every_row(written, tmp_path, monkeypatch, model):
    """Installs FuxiCTR into that folder, once (a package index must be reachable), and trains an epoch."""
    folder = Path(os.environ["QUADRANK_FUXICTR"]).absolute()
    monkeypatch.setattr(fuxictr_rows, "environment", lambda _: environment(folder))
    feature_set, _ = written
    found = train_peer(feature_set.path, model, 1, tmp_path, epochs=1, batch_size=256)
    for split in ("valid", "test"):
        scores = found.scores[split]
        assert len(scores) == sum(len(part["label"]) for part in feature_set.rows(split))
        assert 0 < scores.min() < scores.max() < 1
    assert found.facts["parameters"] > 10_000 and found.facts["rows_per_second"] > 0


@pytest.fixture
def trained(monkeypatch):
    """What each training was asked for; the scores it leaves are its L2."""
    asked = []

    def train(_, arguments):
        asked.append(arguments)
        out = Path(arguments["out"])
        for split in ("valid", "test"):
            np.save(out / f"{split}.npy", np.full(3, arguments["l2"], np.float32))
        (out / "facts.json").write_text('{"parameters": 1}')

    monkeypatch.setattr(fuxictr_rows, "environment", lambda venv: venv / "python")
    monkeypatch.setattr(fuxictr_rows, "_train", train)
    return asked


def test_scores_are_read_again_for_the_same_settings_and_rows_alone(written, trained, tmp_path):
    feature_set, _ = written
    first = train_peer(feature_set.path, "DCNv2", 1, tmp_path)
    again = train_peer(feature_set.path, "DCNv2", 1, tmp_path)
    assert len(trained) == 1 and trained[0]["l2"] == L2["DCNv2"] and again.facts == {"parameters": 1}
    np.testing.assert_array_equal(again.scores["test"], first.scores["test"])
    changed = train_peer(feature_set.path, "DCNv2", 1, tmp_path, l2=0.5)
    assert len(trained) == 2 and (changed.scores["test"] == 0.5).all()

    newer = tmp_path / "newer"
    shutil.copytree(feature_set.path, newer)
    manifest = json.loads((newer / "MANIFEST.json").read_text())
    (newer / "MANIFEST.json").write_text(json.dumps(manifest | {"version": "newer"}))
    train_peer(newer, "DCNv2", 1, tmp_path, l2=0.5)
    assert len(trained) == 3 and trained[2]["folder"].endswith("newer")


def test_a_failed_training_leaves_no_scores_behind(written, trained, tmp_path, monkeypatch):
    feature_set, _ = written
    train_peer(feature_set.path, "DIN", 1, tmp_path)

    def fail(*_):
        raise RuntimeError("no memory")

    with monkeypatch.context() as broken, pytest.raises(RuntimeError):
        broken.setattr(fuxictr_rows, "_train", fail)
        train_peer(feature_set.path, "DIN", 1, tmp_path, l2=0.5)
    # The scores of the first one lie there still, and pass for nothing.
    train_peer(feature_set.path, "DIN", 1, tmp_path)
    assert len(trained) == 2


def test_items_that_change_are_refused(tmp_path):
    toy_feature_set(tmp_path / "toy", rows=100, users=10, items=10)
    version = {ROW: np.array([2], np.int32), VALID_FROM: np.array([0]), "price": np.array([1], np.float32)}
    write_arrow(tmp_path / "toy" / ITEM_VERSIONS, version)
    with pytest.raises(ConfigError, match="has `valid_from`"):
        write_data(FeatureSet.open(tmp_path / "toy"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
