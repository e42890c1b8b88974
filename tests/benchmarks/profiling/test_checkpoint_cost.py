"""What is measured of checkpoints: trainings that write as many as they should."""

from __future__ import annotations

import pytest

from benchmarks.profiling.checkpoint_cost import one_training
from tests.toy import toy_feature_set


@pytest.mark.parametrize(("steps", "checkpoints"), [(0, 0), (5, 2)])
def test_a_training_writes_the_checkpoints_that_are_counted(tmp_path, monkeypatch, steps, checkpoints):
    """800 rows in batches of 64 are 13 steps: checkpoints after 5 and 10, the evaluation's after 13."""
    monkeypatch.setattr("ctr.training.checkpoint_writer.CheckpointWriter.busy", False)
    feature_set = toy_feature_set(tmp_path / "features", rows=1000, users=40)
    model = tmp_path / "model.yaml"
    model.write_text("model: {attention: mean, tower: linear, embedding_dim: 4}\ntrain: {batch_size: 64}\n")
    found = one_training(str(feature_set.path), str(model), steps)
    assert found["checkpoints"] == checkpoints
    assert found["mib"] > 0 and found["cpu_seconds"] > 0
