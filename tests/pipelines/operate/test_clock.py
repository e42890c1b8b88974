"""What each stage took."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pipelines.operate.clock import StageClock, peak_mib


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> StageClock:
    moments = iter([0.0, 2.0, 10.0, 15.0, 20.0, 23.0])
    monkeypatch.setattr("pipelines.operate.clock.time.monotonic", lambda: next(moments))
    monkeypatch.setattr("pipelines.operate.clock.peak_mib", lambda: 7.0)
    return StageClock()


def test_a_stage_that_raises_is_measured_and_one_that_runs_again_is_added(clock: StageClock) -> None:
    with clock.stage("features"):
        pass
    with pytest.raises(ValueError), clock.stage("train"):
        raise ValueError
    with clock.stage("train"):
        pass
    assert clock.seconds() == {"features": 2.0, "train": 8.0}
    assert clock.metrics()["stage.train.seconds"] == 8.0
    assert clock.metrics()["stage.features.peak_mib"] == 7.0


@pytest.mark.parametrize(("platform", "told"), [("linux", 3 * 2**10), ("darwin", 3 * 2**20)])
def test_the_peak_is_in_mib_whatever_the_system_counts_in(
    monkeypatch: pytest.MonkeyPatch, platform: str, told: int
) -> None:
    monkeypatch.setattr("pipelines.operate.clock.sys", SimpleNamespace(platform=platform))
    monkeypatch.setattr("pipelines.operate.clock.resource.getrusage", lambda who: SimpleNamespace(ru_maxrss=told))
    assert peak_mib() == 3.0
