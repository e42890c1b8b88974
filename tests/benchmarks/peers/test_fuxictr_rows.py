"""Trainings of FuxiCTR on a feature set's rows; FuxiCTR itself runs where QUADRANK_FUXICTR names a folder for it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from benchmarks.peers import fuxictr_rows
from benchmarks.peers.fuxictr_peer import environment
from benchmarks.peers.fuxictr_rows import DONE, MODELS, Failed, settings_of, train_peer, train_rows
from ctr.training.allocator import KEEPING
from features.errors import ConfigError
from tests.toy import HISTORY_LEN, toy_feature_set


@pytest.mark.slow
@pytest.mark.skipif("QUADRANK_FUXICTR" not in os.environ, reason="QUADRANK_FUXICTR names no folder for FuxiCTR")
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("history", ["all", "liked"])
@pytest.mark.parametrize("model", MODELS)
def test_fuxictr_itself_trains_and_scores_every_row(simulated, tmp_path, monkeypatch, model, history):
    """Installs FuxiCTR into that folder, once (a package index must be reachable), and trains an epoch."""
    folder = Path(os.environ["QUADRANK_FUXICTR"]).absolute()
    monkeypatch.setattr(fuxictr_rows, "environment", lambda _: environment(folder))
    found = train_peer(simulated.path, model, [1, 2], tmp_path, epochs=1, batch_size=256, history=history)
    assert len(found) == 2
    for split in ("valid", "test"):
        scores = found[0].scores[split]
        assert len(scores) == sum(len(part["label"]) for part in simulated.rows(split))
        assert 0 < scores.min() < scores.max() < 1
        assert not np.array_equal(scores, found[1].scores[split])
    assert found[0].facts["parameters"] > 10_000
    assert found[0].facts["rows_per_second"] > 0


@pytest.mark.slow
@pytest.mark.skipif("QUADRANK_FUXICTR" not in os.environ, reason="QUADRANK_FUXICTR names no folder for FuxiCTR")
@pytest.mark.timeout(3600)
def test_a_training_that_fails_leaves_the_others_alone(simulated, tmp_path, monkeypatch):
    folder = Path(os.environ["QUADRANK_FUXICTR"]).absolute()
    monkeypatch.setattr(fuxictr_rows, "environment", lambda _: environment(folder))
    settings = settings_of("FinalMLP") | {"model": "FinalMLP", "seed": 1, "epochs": 1, "batch_size": 256}
    outs = {tmp_path / "wild": {**settings, "learning_rate": float("nan")}, tmp_path / "tame": settings}
    wild, tame = train_rows(simulated, outs, tmp_path)
    assert isinstance(wild, Failed)
    assert "optimizer=Adam is not supported" in wild.why
    assert not isinstance(tame, Failed)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return toy_feature_set(tmp_path_factory.mktemp("toy"), rows=300, users=20, items=15)


@pytest.fixture
def trained(monkeypatch):
    """What each training was asked for; the scores it leaves are its L2, and one of L2 above 1 fails."""
    asked = []

    def train(_, trainings):
        for one in trainings:
            asked.append(one)
            out = Path(one["out"])
            if one["l2"] > 1:
                (out / "error.txt").write_text("no numbers")
                continue
            for split in ("valid", "test"):
                np.save(out / f"{split}.npy", np.full(3, one["l2"], np.float32))
            (out / "facts.json").write_text('{"parameters": 1}')
            (out / DONE).write_text(json.dumps(one["asked"]))

    monkeypatch.setattr(fuxictr_rows, "environment", lambda venv: venv / "python")
    monkeypatch.setattr(fuxictr_rows, "_train", train)
    return asked


def test_scores_are_read_again_for_the_same_settings_and_rows_alone(toy, trained, tmp_path):
    first = train_peer(toy.path, "DCNv2", [1], tmp_path, history="all")[0]
    again = train_peer(toy.path, "DCNv2", [1], tmp_path, history="all")[0]
    assert len(trained) == 1
    assert trained[0]["l2"] == settings_of("DCNv2")["l2"]
    assert again.facts == {"parameters": 1}
    np.testing.assert_array_equal(again.scores["test"], first.scores["test"])
    changed = train_peer(toy.path, "DCNv2", [1], tmp_path, history="all", l2=0.5)[0]
    assert len(trained) == 2
    assert (changed.scores["test"] == 0.5).all()

    newer = tmp_path / "newer"
    shutil.copytree(toy.path, newer)
    manifest = json.loads((newer / "MANIFEST.json").read_text())
    (newer / "MANIFEST.json").write_text(json.dumps(manifest | {"version": "newer"}))
    train_peer(newer, "DCNv2", [1], tmp_path, history="all", l2=0.5)
    assert len(trained) == 3
    assert "newer" in trained[2]["folder"]


def test_seeds_are_trained_each_into_its_folder_with_histories_as_long_as_ours(toy, trained, tmp_path):
    found = train_peer(toy.path, "FinalMLP", range(1, 4), tmp_path, history="all")
    assert len(found) == 3
    assert [one["seed"] for one in trained] == [1, 2, 3]
    assert len({one["out"] for one in trained}) == 3
    assert {one["max_len"] for one in trained} == {HISTORY_LEN}


def test_a_share_of_the_rows_passes_for_no_other(toy, trained, tmp_path):
    from pipelines.tune.share import TrainingShare

    settings = settings_of("DIN") | {"model": "DIN", "seed": 1, "history": "all"}
    train_rows(TrainingShare(toy, 0.5), {tmp_path / "out": settings}, tmp_path)
    train_rows(toy, {tmp_path / "out": settings}, tmp_path)
    assert len(trained) == 2
    assert trained[0]["folder"] != trained[1]["folder"]


def test_a_failed_training_leaves_no_scores_behind(toy, trained, tmp_path):
    train_peer(toy.path, "DIN", [1], tmp_path, history="all", l2=0.5)
    with pytest.raises(RuntimeError, match="FuxiCTR's DIN failed:\nno numbers"):
        train_peer(toy.path, "DIN", [1], tmp_path, history="all", l2=2.0)
    # The scores of the first one lie there still, and pass for nothing.
    train_peer(toy.path, "DIN", [1], tmp_path, history="all", l2=0.5)
    assert len(trained) == 3


def test_an_unknown_history_is_refused(toy, trained, tmp_path):
    with pytest.raises(ConfigError, match=r"history: 'some' must be one of all, liked"):
        train_peer(toy.path, "DIN", [1], tmp_path, history="some")


def test_the_process_has_our_allocator_and_says_why_it_ended(tmp_path, monkeypatch):
    called = {}

    def run(command, **options):
        called.update(options)
        return subprocess.CompletedProcess(command, called["code"], "", "no such module")

    monkeypatch.setattr(subprocess, "run", run)
    training = {"model": "DIN", "batch_size": 512, "folder": str(tmp_path)}
    called["code"] = -9
    with pytest.raises(ConfigError, match=r"DIN was killed by signal 9.*Lower the batch size \(512\)"):
        fuxictr_rows._train(Path("python"), [training])
    assert called["env"].items() >= KEEPING.items()
    called["code"] = 1
    with pytest.raises(RuntimeError, match="no such module"):
        fuxictr_rows._train(Path("python"), [training])
