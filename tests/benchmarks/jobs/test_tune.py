"""Winners of sweeps judged on rows that no sweep has seen."""

from __future__ import annotations

from pathlib import Path

from benchmarks.jobs.tune import judge, searched
from features.simulator.simulate import simulate
from pipelines.shipped import default_settings
from pipelines.tune.search.space import load_space
from tests.documents import ROOT

QUICK = ROOT / "conf/spaces/quick.yaml"


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


def test_spaces_are_compared_under_the_schedules_of_the_shipped_space() -> None:
    found = searched(QUICK, "median", 7)
    shipped, own = load_space(default_settings("tune.yaml")), load_space(QUICK)
    assert (found.schedule, found.seed) == ("median", 7)
    assert (found.screen, found.startup_trials, found.stop) == (shipped.screen, shipped.startup_trials, shipped.stop)
    assert found.screen != own.screen
    assert (found.space, found.metric) == (own.space, own.metric)
