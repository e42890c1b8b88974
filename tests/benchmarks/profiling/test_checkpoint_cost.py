"""What is measured of checkpoints: trainings that write as many as they should."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from benchmarks.harness.measured import Measured
from benchmarks.profiling import checkpoint_cost
from benchmarks.profiling.checkpoint_cost import one_training
from tests.documents import ROOT
from tests.toy import toy_feature_set


@pytest.fixture(scope="module")
def sizes(tmp_path_factory):
    """A tiny feature set and a preset of a network: 13 steps of 64 rows."""
    folder = tmp_path_factory.mktemp("tiny")
    model = folder / "model.yaml"
    model.write_text("model: {attention: mean, tower: linear, embedding_dim: 4}\ntrain: {batch_size: 64}\n")
    return toy_feature_set(folder / "features", rows=1000, users=40), model


@pytest.mark.parametrize(("steps", "checkpoints"), [(0, 0), (5, 2)])
def test_a_training_writes_the_checkpoints_that_are_counted(sizes, monkeypatch, steps, checkpoints):
    """800 rows in batches of 64 are 13 steps: checkpoints after 5 and 10, the evaluation's after 13."""
    monkeypatch.setattr("ctr.training.checkpoint_writer.CheckpointWriter.busy", False)
    feature_set, model = sizes
    found = one_training(str(feature_set.path), str(model), steps)
    assert found["checkpoints"] == checkpoints
    assert found["mib"] > 0
    assert found["cpu_seconds"] > 0


def test_the_command_prints_what_its_help_says(sizes, monkeypatch, capsys):
    words = ["--feature-set", str(sizes[0].path), "--model", str(sizes[1]), "--steps", "4", "--turns", "1"]
    program = [sys.executable, "-m", "benchmarks.profiling.checkpoint_cost"]
    done = subprocess.run([*program, *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    figures = dict(part.split(" ") for part in done.stdout.strip().split(", "))
    assert list(figures) == ["mib", "write_seconds", "seconds", "cpu_seconds", "share"]
    assert float(figures["mib"]) > 0
    assert ended(monkeypatch, "--help") == 0
    told = capsys.readouterr().out
    assert [name for name in figures if f"`{name}`" not in told] == []


def ended(monkeypatch, *words: str) -> int:
    """Exit code of the command in this process."""
    monkeypatch.setattr(sys, "argv", ["checkpoint_cost.py", *words])
    with pytest.raises(SystemExit) as stop:
        checkpoint_cost.main()
    return int(stop.value.code or 0)


def test_each_option_of_the_help_says_what_it_is(monkeypatch, capsys):
    assert ended(monkeypatch, "--help") == 0
    told = capsys.readouterr().out
    assert told.startswith("usage: python -m benchmarks.profiling.checkpoint_cost ")
    for option in ("feature-set FEATURE_SET", "model MODEL", "steps STEPS", "turns TURNS"):
        assert re.search(rf"^  --{option}\s+\w", told, re.MULTILINE), told


@pytest.mark.parametrize("words", [["--steps", "0"], ["--turns", "0"]])
def test_a_size_that_shows_nothing_is_refused(monkeypatch, capsys, words):
    assert ended(monkeypatch, "--feature-set", "here", *words) == 2
    assert "--steps and --turns are 1 or more" in capsys.readouterr().err


def test_trainings_without_a_checkpoint_are_no_measure_of_one(monkeypatch, capsys):
    none = {"checkpoints": 0, "mib": 1.0, "write_seconds": 0.1, "seconds": 2.0, "cpu_seconds": 2.0}
    monkeypatch.setattr(checkpoint_cost, "measure", lambda target, **_: Measured(1.0, 1.0, none))
    assert ended(monkeypatch, "--feature-set", "here") == 2
    assert "one epoch of here wrote no checkpoint every 50 steps: give fewer --steps" in capsys.readouterr().err
