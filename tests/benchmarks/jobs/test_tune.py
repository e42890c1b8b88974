"""Winners of sweeps judged on rows that no sweep has seen."""

from __future__ import annotations

from pathlib import Path

from benchmarks.jobs.tune import judge
from features.simulator.simulate import simulate
from tests.documents import ROOT


def test_a_winner_with_the_current_settings_gains_nothing_and_is_trained_once(tmp_path: Path) -> None:
    simulate(tmp_path / "raw", rows=6_000, users=150, items=100, seed=1)
    candidates = {"current": {}, "the same": {"train.learning_rate": 0.002}, "other": {"train.learning_rate": 0.0001}}
    small = ["train.epochs=1", "train.batch_size=256", "train.evaluations_per_epoch=1", "train.learning_rate=0.002"]
    found = judge(
        str(ROOT / "conf/data/simulated.yaml"), str(tmp_path / "raw"), str(tmp_path), str(ROOT / "conf/model/lr.yaml"),
        candidates, 2, small,
    )  # fmt: skip
    assert found["the same"] == found["current"]
    assert [found["the same"][name] for name in ("gain", "gain_low", "gain_high")] == [0, 0, 0]
    assert found["other"]["gain_low"] < found["other"]["gain"] < found["other"]["gain_high"]
